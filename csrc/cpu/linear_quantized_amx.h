// The linear layer on weights of 8 or 4 bits (see linear_quantized.h) on matrix tiles, from the same packed
// weights: the four bytes of a column that one dot product takes are what a right operand holds, so int8 is
// loaded where it lies and int4 is unpacked to that, once per group and block of rows. The tiles multiply
// signed q by unsigned weights; minus the offset times the sum of q comes to the integers behind them. A
// group's sum is exact in any order and all after it is in the order of linear_quantized.h: the same bits.
//
// Limit by arithmetic, 16 rows x 64 columns x one group of 128: 8 products (128 cycles) beside 10 loads (80),
// 4 stores (64), and 64 vectors of 5 operations on two ports (160): 820 multiply-adds a cycle where all of it
// overlaps, 128 at most with dot products. A group of 32 has products of half the depth: 4 in 64 cycles
// beside the same 160, a limit of 205.
#pragma once

namespace llmcli::cpu::LLMCLI_ISA {

// So few rows take 72 cycles a row and group of int8 with dot products; tiles take 128 for any up to 16, and
// their configuration.
constexpr int64_t kQuantizedFew = 2;

// The rows of a tile times a panel: x has rows x_stride apart, `products` kQuantizedPanel apart.
template <int64_t kDepth>
LLMCLI_INLINE void quantized_products(const int8_t* x, int64_t x_stride, const uint8_t* w, int64_t depth,
                                      int32_t* products) {
  constexpr int64_t kQuads = 4 * kQuantizedPanel;  // bytes of w from quad to quad
  tile_fence();
  tile_clear();
  for (int64_t k = 0; k < depth; k += kDepth, w += kDepth * kQuantizedPanel) {
    LLMCLI_TILE_LOAD(4, x + k, x_stride);
    LLMCLI_TILE_LOAD(5, w, kQuads);
    LLMCLI_TILE_MULTIPLY_BYTES(0, 4, 5);
    LLMCLI_TILE_LOAD(6, w + 64, kQuads);
    LLMCLI_TILE_MULTIPLY_BYTES(1, 4, 6);
    LLMCLI_TILE_LOAD(7, w + 128, kQuads);
    LLMCLI_TILE_MULTIPLY_BYTES(2, 4, 7);
    LLMCLI_TILE_LOAD(5, w + 192, kQuads);
    LLMCLI_TILE_MULTIPLY_BYTES(3, 4, 5);
  }
  tile_write<4>(products, kQuantizedPanel);
  tile_fence();
}

// One panel against `rows` rows from `row` on.
template <class Q>
inline void quantized_tiles(const QuantizedLinearArgs& a, TileSession& session, int64_t panel, int64_t row,
                            int64_t rows) {
  constexpr int kBits = Q::kBits;
  constexpr int64_t kGroup = Q::kGroup, kDepth = kGroup < 64 ? kGroup : 64;
  alignas(64) float sums[kQuantizedBlock * kQuantizedPanel];
  alignas(64) int32_t products[TileProduct::kRows * kQuantizedPanel];
  alignas(64) uint8_t w_copy[kGroup * kQuantizedPanel];
  alignas(64) int8_t x_copy[kQuantizedBlock * kGroup];
  const int64_t groups = Q::groups(a.inputs), padded = Q::padded(a.inputs);
  const int64_t height = rows < TileProduct::kRows ? rows : TileProduct::kRows;
  const uint8_t* next = a.w + panel * Q::panel_bytes(a.inputs);
  if (groups == 0) std::memset(sums, 0, sizeof(sums));
  session.shape(height, kDepth / 4);
  for (int64_t g = 0; g < groups; ++g) {
    const int64_t left = padded - g * kGroup, n = left < kGroup ? left : kGroup, depth = round_up(n, kDepth);
    const auto* const column_scales = reinterpret_cast<const typename Q::Scale*>(next);
    const uint8_t* w = next + 2 * kQuantizedPanel;
    next = w + n * kQuantizedPanel * kBits / 8;
    const int8_t* x = a.q + row * padded + g * kGroup;
    int64_t x_stride = padded;
    if constexpr (kBits == 4) {
      for (int64_t i = 0; i < n / 8; ++i)
        for (int64_t c = 0; c < 4 * kQuantizedPanel; c += 64) {
          const I both = load_int(w + 4 * kQuantizedPanel * i + c);
          const I low = low_nibbles(both), high = high_nibbles(both);
          std::memcpy(w_copy + 8 * kQuantizedPanel * i + c, &low, 64);
          std::memcpy(w_copy + 8 * kQuantizedPanel * i + 4 * kQuantizedPanel + c, &high, 64);
        }
      w = w_copy;
    }
    if (n < depth) {  // the last group: a copy with zeros behind
      if (w != w_copy) std::memcpy(w_copy, w, static_cast<size_t>(n * kQuantizedPanel));
      std::memset(w_copy + n * kQuantizedPanel, 0, static_cast<size_t>((depth - n) * kQuantizedPanel));
      std::memset(x_copy, 0, sizeof(x_copy));
      for (int64_t r = 0; r < rows; ++r)
        std::memcpy(x_copy + r * kGroup, x + r * padded, static_cast<size_t>(n));
      w = w_copy, x = x_copy, x_stride = kGroup;
    }
    for (int64_t r = 0; r < rows; r += height) {
      // Tiles keep their height: the last ones begin among rows that are done.
      const int64_t first = r + height <= rows ? r : rows - height;
      quantized_products<kDepth>(x + first * x_stride, x_stride, w, depth, products);
      for (int64_t i = r; i < first + height; ++i) {
        const int64_t at = (row + i) * groups + g;
        const F start = set(static_cast<float>(a.starts[at])), scale = set(a.scales[at]);
        LLMCLI_UNROLL for (int64_t c = 0; c < kQuantizedPanel; c += N) {
          const F sum = add(convert(load_int(products + (i - first) * kQuantizedPanel + c)), start);
          const F y = mul(sum, mul(scale, load(column_scales + c)));
          float* const to = sums + i * kQuantizedPanel + c;
          store(to, g == 0 ? y : add(load(to), y));
        }
      }
    }
  }
  quantized_store(a, row, rows, panel * kQuantizedPanel, sums);
}

inline void linear_quantized_tiles(const QuantizedLinearArgs& a, int64_t begin, int64_t end) {
  TileSession session;
  quantized_items(a, begin, end, [&](int64_t panel, int64_t row, int64_t row_end) {
    const int64_t rows = row_end - row;
    if (a.blocks) {
      a.bits == 8 ? quantized_tiles<Quantized<8, true>>(a, session, panel, row, rows)
                  : quantized_tiles<Quantized<4, true>>(a, session, panel, row, rows);
    } else {
      a.bits == 8 ? quantized_tiles<Quantized<8, false>>(a, session, panel, row, rows)
                  : quantized_tiles<Quantized<4, false>>(a, session, panel, row, rows);
    }
  });
}

}  // namespace llmcli::cpu::LLMCLI_ISA
