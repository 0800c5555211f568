// Linear layer on weights of 8 or 4 bits: y = x W^T + bias, x (M, K), W (N, K), y (M, N). Groups of
// consecutive inputs, 128 (int8) or 32 (int4), share a scale: the weight is scale[n][g] * (u - offset), u
// unsigned, offset 128 or 8, scale bfloat16. The same groups of each row of x become eight signed bits, q =
// round(x / s), s = max |x| / 127. A group's sum of q * (u - offset) is an integer below 2^24: it starts at
// -offset * sum(q), so that one unsigned-by-signed dot product serves, and it is exact in any order. Then, in
// rising g, y += float(sum) * (s * scale[n][g]): three roundings, none of them fused. So an element depends
// on its row and K alone, and has the same bits on every instruction set, in any tile, beside any company.
//
// Packed: panels of 64 columns, one after the other; in a panel, group by group, 64 scales and then the
// weights, [K / 4][64][4] bytes (int8) or [K / 8][64][4] (int4: a byte holds input 8 s + j below and 8 s + 4
// + j above). Inputs past K and columns past N weigh nothing. Traffic: K N (1 + 2 / 128) or K N (1 / 2 + 2 /
// 32) bytes once per 48 rows. Tile: 6 rows × 4 vectors of int32 with 32 registers, 4 × 2 with 16. Rows that
// fill one tile walk through K at memory speed; more are dealt evenly to tiles and take it group by group,
// which stays in L1.
#pragma once
#include "row_bytes.h"

namespace llmcli::cpu::LLMCLI_ISA {

constexpr int kQuantizedRows = N == 16 ? 6 : 4, kQuantizedVectors = N == 16 ? 4 : 2;
// Bytes between what a tile reads and what it starts loading.
constexpr int quantized_ahead(int bits) { return bits == 8 ? 4096 : 8192; }

template <typename T>
void quantize_row(const QuantizedLinearArgs& a, int64_t row) {
  const int64_t group = quantized_group(a.bits), groups = quantized_groups(a.inputs, a.bits);
  const int64_t padded = quantized_inputs(a.inputs, a.bits);
  for (int64_t g = 0; g < groups; ++g) {
    const int64_t k = g * group;
    const int64_t n = a.inputs - k < group ? a.inputs - k : group;
    const int64_t room = padded - k < group ? padded - k : group;
    int8_t* const q = a.q + row * padded + k;
    int32_t sum;
    a.scales[row * groups + g] = row_to_bytes(static_cast<const T*>(a.x) + row * a.inputs + k, n, q, &sum);
    a.starts[row * groups + g] = (a.bits == 8 ? -128 : -8) * sum;
    for (int64_t i = n; i < room; ++i) q[i] = 0;
  }
}

inline void linear_quantized_rows(const QuantizedLinearArgs& a, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) switch (a.dtype) {
      case DType::f32:
        quantize_row<float>(a, row);
        break;
      case DType::bf16:
        quantize_row<bf16>(a, row);
        break;
      case DType::f16:
        quantize_row<f16>(a, row);
        break;
    }
}

LLMCLI_INLINE I broadcast_bytes(const int8_t* p) {
  int32_t x;
  std::memcpy(&x, p, 4);
  return set_int(x);
}

// One group of one register tile: adds to `sums`, or sets them in the first group. Few rows that come from
// memory start loading what they need later; more leave no registers for it.
template <int kBits, int kRows, bool kMany>
LLMCLI_INLINE void quantized_tile(const int8_t* q, int64_t q_stride, const float* scales,
                                  const int32_t* starts, int64_t groups, const bf16* column_scales,
                                  const uint8_t* w, int64_t loads, bool first, float* sums) {
  constexpr int kVectors = kQuantizedVectors;
  constexpr bool kFetch = !kMany && kRows <= (kBits == 8 ? 5 : 2);
  I sum[kRows][kVectors];
  LLMCLI_UNROLL for (int r = 0; r < kRows; ++r) LLMCLI_UNROLL for (int v = 0; v < kVectors; ++v) sum[r][v] =
      set_int(starts[r * groups]);
  if constexpr (kFetch)
    for (int64_t c = 0; c < kVectors * N; c += 32)
      __builtin_prefetch(column_scales + c + quantized_ahead(kBits) / 2, 0, 3);
  int64_t s = 0;
  do {  // loads >= 1
    I u[kVectors];
    LLMCLI_UNROLL for (int v = 0; v < kVectors; ++v) {
      u[v] = load_int(w + 4 * v * N);
      if constexpr (kBits == 4) u[v] = low_nibbles(u[v]);
      if constexpr (kFetch) __builtin_prefetch(w + 4 * v * N + quantized_ahead(kBits), 0, 3);
    }
    LLMCLI_UNROLL for (int r = 0; r < kRows; ++r) {
      const I x = broadcast_bytes(q + r * q_stride + quantized_unit(kBits) * s);
      LLMCLI_UNROLL for (int v = 0; v < kVectors; ++v) sum[r][v] = dot_bytes<kBits>(sum[r][v], u[v], x);
    }
    if constexpr (kBits == 4) {
      asm("" ::: "memory");  // load again: both halves at once do not fit beside the sums
      LLMCLI_UNROLL for (int v = 0; v < kVectors; ++v) u[v] = high_nibbles(load_int(w + 4 * v * N));
      LLMCLI_UNROLL for (int r = 0; r < kRows; ++r) {
        const I x = broadcast_bytes(q + r * q_stride + 8 * s + 4);
        LLMCLI_UNROLL for (int v = 0; v < kVectors; ++v) sum[r][v] = dot_bytes<4>(sum[r][v], u[v], x);
      }
    }
    w += 4 * kQuantizedPanel;
  } while (++s < loads);
  LLMCLI_UNROLL for (int v = 0; v < kVectors; ++v) {
    const F column_scale = load(column_scales + v * N);
    LLMCLI_UNROLL for (int r = 0; r < kRows; ++r) {
      const F y = mul(convert(sum[r][v]), mul(set(scales[r * groups]), column_scale));
      float* to = sums + r * kQuantizedPanel + v * N;
      store(to, first ? y : add(load(to), y));
    }
  }
}

template <typename T, typename Y>
LLMCLI_INLINE void quantized_store_as(const QuantizedLinearArgs& a, int64_t row, int64_t rows, int64_t column,
                                      const float* sums) {
  const int64_t columns = a.outputs - column < kQuantizedPanel ? a.outputs - column : kQuantizedPanel;
  const T* bias = a.bias ? static_cast<const T*>(a.bias) + column : nullptr;
  for (int64_t r = 0; r < rows; ++r) {
    Y* y = static_cast<Y*>(a.y) + (row + r) * a.outputs + column;
    for (int64_t c = 0; c < columns; c += N) {
      F s = load(sums + r * kQuantizedPanel + c);
      if (bias) s = add(s, load_n(bias + c, columns - c));
      store_n(y + c, s, columns - c);
    }
  }
}

template <typename T>
LLMCLI_INLINE void quantized_store_wide(const QuantizedLinearArgs& a, int64_t row, int64_t rows,
                                        int64_t column, const float* sums) {
  a.wide ? quantized_store_as<T, float>(a, row, rows, column, sums)
         : quantized_store_as<T, T>(a, row, rows, column, sums);
}

inline void quantized_store(const QuantizedLinearArgs& a, int64_t row, int64_t rows, int64_t column,
                            const float* sums) {
  switch (a.dtype) {
    case DType::f32:
      return quantized_store_as<float, float>(a, row, rows, column, sums);
    case DType::bf16:
      return quantized_store_wide<bf16>(a, row, rows, column, sums);
    case DType::f16:
      return quantized_store_wide<f16>(a, row, rows, column, sums);
  }
}

// One group of a panel for up to kQuantizedRows rows.
template <int kBits, bool kMany>
LLMCLI_INLINE void quantized_rows(const QuantizedLinearArgs& a, int64_t row, int64_t rows, int64_t g,
                                  const uint8_t* group, int64_t loads, float* sums) {
  const int64_t groups = quantized_groups(a.inputs, kBits), padded = quantized_inputs(a.inputs, kBits);
  const int8_t* const q = a.q + row * padded + g * quantized_group(kBits);
  const float* const scales = a.scales + row * groups + g;
  const int32_t* const starts = a.starts + row * groups + g;
  const bf16* const column_scales = reinterpret_cast<const bf16*>(group);
  const uint8_t* const w = group + 2 * kQuantizedPanel;
  const auto run = [&](auto n) LLMCLI_INLINE_BODY {
    for (int64_t c = 0; c < kQuantizedPanel; c += kQuantizedVectors * N)
      quantized_tile<kBits, n, kMany>(q, padded, scales, starts, groups, column_scales + c, w + 4 * c, loads,
                                      g == 0, sums + c);
  };
  switch (rows) {
    case 6:
      return run(std::integral_constant<int, kQuantizedRows>{});
    case 5:
      return run(std::integral_constant<int, kQuantizedRows - 1>{});
    case 4:
      return run(std::integral_constant<int, 4>{});
    case 3:
      return run(std::integral_constant<int, 3>{});
    case 2:
      return run(std::integral_constant<int, 2>{});
    default:
      return run(std::integral_constant<int, 1>{});
  }
}

// A panel, group by group; with kMany rows need several tiles.
template <int kBits, bool kMany>
void quantized_panel(const QuantizedLinearArgs& a, int64_t panel, int64_t row, int64_t rows, float* sums) {
  constexpr int64_t kGroup = quantized_group(kBits), kUnit = quantized_unit(kBits);
  const int64_t groups = quantized_groups(a.inputs, kBits), padded = quantized_inputs(a.inputs, kBits);
  const int64_t tiles = (rows + kQuantizedRows - 1) / kQuantizedRows, tile = (rows + tiles - 1) / tiles;
  const uint8_t* group = a.w + panel * quantized_panel_bytes(a.inputs, kBits);
  for (int64_t g = 0; g < groups; ++g) {
    const int64_t left = padded - g * kGroup, loads = (left < kGroup ? left : kGroup) / kUnit;
    const int64_t bytes = 2 * kQuantizedPanel + 4 * kQuantizedPanel * loads,
                  share = (bytes / tiles + 63) / 64 * 64;
    const uint8_t* next = group + bytes;
    for (int64_t r = 0; r < rows; r += tile, next += share) {
      // Each tile starts loading its share of the next group.
      for (int64_t i = 0; kMany && i < share; i += 64) __builtin_prefetch(next + i, 0, 3);
      quantized_rows<kBits, kMany>(a, row + r, rows - r < tile ? rows - r : tile, g, group, loads,
                                   sums + r * kQuantizedPanel);
    }
    group += bytes;
  }
}

template <int kBits>
void quantized_item(const QuantizedLinearArgs& a, int64_t panel, int64_t row, int64_t row_end) {
  alignas(64) float sums[kQuantizedBlock * kQuantizedPanel];
  const int64_t rows = row_end - row;
  if (a.inputs == 0) std::memset(sums, 0, sizeof(sums));
  if (rows > kQuantizedRows) {
    quantized_panel<kBits, true>(a, panel, row, rows, sums);
  } else {
    quantized_panel<kBits, false>(a, panel, row, rows, sums);
  }
  quantized_store(a, row, rows, panel * kQuantizedPanel, sums);
}

// Calls f(panel, row, row_end) for items.
template <class Call>
LLMCLI_INLINE void quantized_items(const QuantizedLinearArgs& a, int64_t begin, int64_t end, const Call& f) {
  const int64_t blocks = (a.rows + kQuantizedBlock - 1) / kQuantizedBlock;
  for (int64_t item = begin; item < end; ++item) {
    const int64_t panel = item / blocks, row = item % blocks * kQuantizedBlock;
    const int64_t row_end = row + kQuantizedBlock < a.rows ? row + kQuantizedBlock : a.rows;
    f(panel, row, row_end);
  }
}

inline void linear_quantized(const QuantizedLinearArgs& a, int64_t begin, int64_t end) {
  quantized_items(a, begin, end, [&](int64_t panel, int64_t row, int64_t row_end) {
    a.bits == 8 ? quantized_item<8>(a, panel, row, row_end) : quantized_item<4>(a, panel, row, row_end);
  });
}

// Four inputs of one column from k on, as they lie in a load: int8 plus 128, or the nibble plus 8.
template <int kBits>
LLMCLI_INLINE uint32_t quantized_quad(const QuantizedPackArgs& a, int64_t column, int64_t k) {
  uint32_t quad = 0;
  for (int j = 0; j < 4; ++j) {
    uint32_t u = kBits == 8 ? 128 : 8;
    if (column < a.outputs && k + j < a.inputs) {
      if constexpr (kBits == 8) {
        u = static_cast<uint8_t>(static_cast<const int8_t*>(a.w)[column * a.inputs + k + j] + 128);
      } else {
        const int64_t row_bytes = (a.inputs + 1) / 2;
        u = static_cast<const uint8_t*>(a.w)[column * row_bytes + (k + j) / 2] >> (k + j) % 2 * 4 & 15;
      }
    }
    quad |= u << 8 * j;
  }
  return quad;
}

template <int kBits>
void quantized_pack_panel(const QuantizedPackArgs& a, int64_t panel) {
  const int64_t groups = quantized_groups(a.inputs, kBits), padded = quantized_inputs(a.inputs, kBits);
  uint8_t* to = a.packed + panel * quantized_panel_bytes(a.inputs, kBits);
  for (int64_t g = 0; g < groups; ++g) {
    for (int64_t c = 0; c < kQuantizedPanel; ++c) {
      const int64_t column = panel * kQuantizedPanel + c;
      const bf16 scale = column < a.outputs ? a.scale[column * groups + g] : bf16{0};
      std::memcpy(to + 2 * c, &scale, 2);
    }
    to += 2 * kQuantizedPanel;
    const int64_t end = (g + 1) * quantized_group(kBits) < padded ? (g + 1) * quantized_group(kBits) : padded;
    for (int64_t k = g * quantized_group(kBits); k < end; k += quantized_unit(kBits))
      for (int64_t c = 0; c < kQuantizedPanel; ++c) {
        const int64_t column = panel * kQuantizedPanel + c;
        uint32_t quad = quantized_quad<kBits>(a, column, k);
        if constexpr (kBits == 4) quad |= quantized_quad<kBits>(a, column, k + 4) << 4;
        std::memcpy(to, &quad, 4);
        to += 4;
      }
  }
}

inline void linear_quantized_pack(const QuantizedPackArgs& a, int64_t begin, int64_t end) {
  for (int64_t panel = begin; panel < end; ++panel)
    a.bits == 8 ? quantized_pack_panel<8>(a, panel) : quantized_pack_panel<4>(a, panel);
}

}  // namespace llmcli::cpu::LLMCLI_ISA
