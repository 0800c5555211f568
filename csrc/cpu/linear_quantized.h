// Linear layer on weights of 8 or 4 bits: y = x W^T + bias, x (M, K), W (N, K), y (M, N). Groups of
// consecutive inputs, 128 (int8) or 32 (int4), share a scale: the weight is scale[n][g] * (u - offset), u
// unsigned, offset 128 or 8, scale bfloat16. The same groups of each row of x become eight signed bits, q =
// round(x / s), s = max |x| / 127. A group's sum of q * (u - offset) is an integer below 2^24: it starts at
// -offset * sum(q), so that one unsigned-by-signed dot product serves, and it is exact in any order. Then, in
// rising g, y += float(sum) * (s * scale[n][g]): three roundings, none of them fused. So an element depends
// on its row and K alone, and has the same bits on every instruction set, in any tile, beside any company.
//
// ggml's blocks Q8_0 and Q4_0 are the same with groups of 32 and float16 scales; linear_blocks.h packs them.
//
// Packed: panels of 64 columns, one after the other; in a panel, group by group, 64 scales and then the
// weights, [K / 4][64][4] bytes (int8) or [K / 8][64][4] (int4: a byte holds input 8 s + j below and 8 s + 4
// + j above). Inputs past K and columns past N weigh nothing. Traffic: K N (1 + 2 / 128) or K N (1 / 2 + 2 /
// 32) bytes once per 48 rows. With 32 registers, rows that fill one tile walk through K at memory speed, and
// a tile is 6 rows x 4 vectors, whose sums of floats lie in memory from four rows on. More rows are dealt
// evenly to tiles that take K piece by piece, out of L1, 6 x 2, whose sums of both kinds stay in registers;
// but many of int8 to 6 x 4 again. With 16 registers tiles are 4 x 2.
#pragma once
#include "row_bytes.h"

namespace llmcli::cpu::LLMCLI_ISA {

constexpr int kQuantizedRows = N == 16 ? 6 : 4;
// Groups that many tiles go through one after the other.
constexpr int64_t quantized_piece(int64_t group, int bits) { return 1024 / (group * bits); }  // 8 KiB
// Bytes between what a tile reads and what it starts loading: of few rows, and of many.
constexpr int64_t quantized_ahead(int bits) { return bits == 8 ? 4096 : 8192; }
constexpr int64_t kQuantizedAhead = 16384;
// More rows than these take tiles of 4 vectors where groups are long enough to add their floats in memory.
constexpr int64_t kQuantizedSeveral = 24;

// Bits, and whether they are ggml's blocks, as a type.
template <int bits, bool blocks>
struct Quantized {
  using Scale = std::conditional_t<blocks, f16, bf16>;
  static constexpr int kBits = bits;
  static constexpr int64_t kGroup = quantized_group(bits, blocks), kUnit = quantized_unit(bits);
  static constexpr int64_t kBytes = kQuantizedPanel * (2 + kGroup * bits / 8);  // of a group of a panel
  static int64_t groups(int64_t inputs) { return quantized_groups(inputs, bits, blocks); }
  static int64_t padded(int64_t inputs) { return quantized_inputs(inputs, bits); }
  static int64_t panel_bytes(int64_t inputs) { return quantized_panel_bytes(inputs, bits, blocks); }
};

template <typename T>
void quantize_row(const QuantizedLinearArgs& a, int64_t row) {
  const int64_t group = quantized_group(a.bits, a.blocks);
  const int64_t groups = quantized_groups(a.inputs, a.bits, a.blocks);
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

// Groups of a panel beside the rows that they meet.
struct QuantizedPiece {
  const int8_t* q;
  const float* scales;
  const int32_t* starts;
  const uint8_t* w;            // the scales of the first group
  int64_t q_stride, stride;    // between rows, of q and of scales and starts
  int64_t groups, last_loads;  // loads of the last group
};

// Products of the rows with one load of each vector. Rows are reached from every fourth one by its stride and
// three times that: a register for each would not be left.
template <int kBits, int kRows, int kVectors>
LLMCLI_INLINE void quantized_dots(const int8_t* const (&q)[(kRows + 3) / 4], int64_t stride, int64_t three,
                                  const I (&u)[kVectors], I (&sum)[kRows][kVectors]) {
  LLMCLI_UNROLL for (int r = 0; r < kRows; ++r) {
    const I x = broadcast_bytes(q[r / 4] + (r % 4 == 3 ? three : r % 4 * stride));
    LLMCLI_UNROLL for (int v = 0; v < kVectors; ++v) sum[r][v] = dot_bytes<kBits>(sum[r][v], u[v], x);
  }
}

// Adds a register tile's part of a piece to `sums`. Few rows that come from memory start loading what they
// need later with every load; many tiles each fetch `share` bytes, `ahead` of each group.
template <class Q, int kRows, int kVectors, bool kMany>
LLMCLI_INLINE void quantized_tile(const QuantizedPiece& a, int64_t column, int64_t ahead, int64_t share,
                                  float* sums) {
  constexpr int kBits = Q::kBits;
  constexpr bool kFetch = !kMany;
  constexpr bool kKeep = N == 16 && kRows * kVectors <= 12;
  F y[kRows][kVectors];
  if constexpr (kKeep)
    LLMCLI_UNROLL for (int r = 0; r < kRows; ++r) LLMCLI_UNROLL for (int v = 0; v < kVectors; ++v) y[r][v] =
        load(sums + r * kQuantizedPanel + v * N);
  const uint8_t* group = a.w;
  const int64_t three = 3 * a.q_stride;
  for (int64_t g = 0; g < a.groups; ++g) {
    I sum[kRows][kVectors];
    LLMCLI_UNROLL for (int r = 0; r < kRows; ++r) {
      const I start = set_int(a.starts[r * a.stride + g]);
      LLMCLI_UNROLL for (int v = 0; v < kVectors; ++v) sum[r][v] = start;
    }
    if constexpr (kFetch)
      for (int64_t c = 0; c < 2 * kVectors * N; c += 64)
        __builtin_prefetch(group + 2 * column + c + quantized_ahead(kBits), 0, 3);
    for (int64_t i = 0; kMany && i < share; i += 64) __builtin_prefetch(group + ahead + i, 0, 3);
    const int8_t* q[(kRows + 3) / 4];
    LLMCLI_UNROLL for (int r = 0; r < kRows; r += 4) {
      q[r / 4] = a.q + r * a.q_stride + g * Q::kGroup;
      asm("" : "+r"(q[r / 4]));  // a pointer of its own
    }
    const uint8_t* w = group + 2 * kQuantizedPanel + 4 * column;
    const int64_t loads = g + 1 < a.groups ? Q::kGroup / Q::kUnit : a.last_loads;
    int64_t left = loads;
    do {  // loads >= 1
      I u[kVectors];
      LLMCLI_UNROLL for (int v = 0; v < kVectors; ++v) {
        u[v] = load_int(w + 4 * v * N);
        if constexpr (kBits == 4) u[v] = low_nibbles(u[v]);
        if constexpr (kFetch) __builtin_prefetch(w + 4 * v * N + quantized_ahead(kBits), 0, 3);
      }
      quantized_dots<kBits>(q, a.q_stride, three, u, sum);
      LLMCLI_UNROLL for (int r = 0; r < kRows; r += 4) q[r / 4] += 4;
      if constexpr (kBits == 4) {
        asm("" ::: "memory");  // load again: both halves at once do not fit beside the sums
        LLMCLI_UNROLL for (int v = 0; v < kVectors; ++v) u[v] = high_nibbles(load_int(w + 4 * v * N));
        quantized_dots<kBits>(q, a.q_stride, three, u, sum);
        LLMCLI_UNROLL for (int r = 0; r < kRows; r += 4) q[r / 4] += 4;
      }
      w += 4 * kQuantizedPanel;
    } while (--left > 0);
    const auto* const column_scales = reinterpret_cast<const typename Q::Scale*>(group) + column;
    LLMCLI_UNROLL for (int v = 0; v < kVectors; ++v) {
      const F column_scale = load(column_scales + v * N);
      LLMCLI_UNROLL for (int r = 0; r < kRows; ++r) {
        const F part = mul(convert(sum[r][v]), mul(set(a.scales[r * a.stride + g]), column_scale));
        float* const to = sums + r * kQuantizedPanel + v * N;
        if constexpr (kKeep) {
          y[r][v] = add(y[r][v], part);
        } else {
          store(to, add(load(to), part));
        }
      }
    }
    group += 2 * kQuantizedPanel + 4 * kQuantizedPanel * loads;
  }
  if constexpr (kKeep)
    LLMCLI_UNROLL for (int r = 0; r < kRows; ++r) LLMCLI_UNROLL for (int v = 0; v < kVectors; ++v)
        store(sums + r * kQuantizedPanel + v * N, y[r][v]);
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

// A piece for one tile of up to kRows rows, which fetches `share` bytes of each group.
template <class Q, int kVectors, bool kMany, int kRows = kQuantizedRows>
LLMCLI_INLINE void quantized_rows(const QuantizedPiece& a, int64_t rows, int64_t ahead, int64_t share,
                                  float* sums) {
  if constexpr (kRows > 1)
    if (rows < kRows) return quantized_rows<Q, kVectors, kMany, kRows - 1>(a, rows, ahead, share, sums);
  constexpr int64_t kWidth = kVectors * N;
  const int64_t part = (share * kWidth / kQuantizedPanel + 63) / 64 * 64;
  for (int64_t c = 0; c < kQuantizedPanel; c += kWidth, ahead += part)
    quantized_tile<Q, kRows, kVectors, kMany>(a, c, ahead, part, sums + c);
}

// Adds a panel's products to `sums`, piece by piece; with kMany rows need several tiles.
template <class Q, int kVectors, bool kMany>
void quantized_panel(const QuantizedLinearArgs& a, int64_t panel, int64_t row, int64_t rows, float* sums) {
  const int64_t groups = Q::groups(a.inputs), padded = Q::padded(a.inputs);
  const int64_t tiles = (rows + kQuantizedRows - 1) / kQuantizedRows, tile = (rows + tiles - 1) / tiles;
  const int64_t share = Q::kBytes / tiles, last_loads = (padded - (groups - 1) * Q::kGroup) / Q::kUnit;
  const int64_t piece = kMany ? quantized_piece(Q::kGroup, Q::kBits) : groups;
  QuantizedPiece p{};
  p.q_stride = padded, p.stride = groups;
  for (int64_t g = 0; g < groups; g += piece) {
    const bool last = groups - g <= piece;
    p.w = a.w + panel * Q::panel_bytes(a.inputs) + g * Q::kBytes;
    p.groups = last ? groups - g : piece;
    p.last_loads = last ? last_loads : Q::kGroup / Q::kUnit;
    for (int64_t r = 0; r < rows; r += tile) {
      p.q = a.q + (row + r) * padded + g * Q::kGroup;
      p.scales = a.scales + (row + r) * groups + g;
      p.starts = a.starts + (row + r) * groups + g;
      quantized_rows<Q, kVectors, kMany>(p, rows - r < tile ? rows - r : tile,
                                         kQuantizedAhead + r / tile * share, share,
                                         sums + r * kQuantizedPanel);
    }
  }
}

template <class Q>
void quantized_item(const QuantizedLinearArgs& a, int64_t panel, int64_t row, int64_t row_end) {
  alignas(64) float sums[kQuantizedBlock * kQuantizedPanel];
  const int64_t rows = row_end - row;
  const F none = set(a.inputs == 0 ? 0.0f : -0.0f);  // -0 + x is x, also where x is 0
  for (int64_t i = 0; i < rows * kQuantizedPanel; i += N) store(sums + i, none);
  constexpr int kMost = N == 16 ? 4 : 2, kLong = N == 16 && Q::kGroup > 32 ? 4 : 2;
  if (rows <= kQuantizedRows) {
    quantized_panel<Q, kMost, false>(a, panel, row, rows, sums);
  } else if (rows <= kQuantizedSeveral) {
    quantized_panel<Q, 2, true>(a, panel, row, rows, sums);
  } else {
    quantized_panel<Q, kLong, true>(a, panel, row, rows, sums);
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
    if (a.blocks) {
      a.bits == 8 ? quantized_item<Quantized<8, true>>(a, panel, row, row_end)
                  : quantized_item<Quantized<4, true>>(a, panel, row, row_end);
    } else {
      a.bits == 8 ? quantized_item<Quantized<8, false>>(a, panel, row, row_end)
                  : quantized_item<Quantized<4, false>>(a, panel, row, row_end);
    }
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
