// Products of small tiles, C (rows x columns) = A (rows x depth) * B (depth x columns), out of registers.
// Columns lie along the lanes; every element of C is one chain of fused multiply-adds over ascending depth,
// starting from zero, so its value does not depend on the tile that computed it: one row gives what many
// give.
//
// A Product names the operands: its Element, how many of them (kPair) one lane multiplies in one step, how
// many depths one instruction takes (kUnit), how many rows fill its registers (kRows), and how to pack
// tensors into them. A call that multiplies holds its Session. Packed layouts, in elements:
//   rows        [row][depth], the left operand
//   transposed  [depth / kPair][columns][kPair] from memory that holds one column after the other
//   depths      [depth / kPair][columns][kPair] from memory that holds one depth after the other
// Depth is padded with zeros to a multiple of kUnit, columns to a multiple of N.
#pragma once

namespace llmcli::cpu::LLMCLI_ISA {

// A register tile of kTileRows x kTileVectors accumulators, plus one row of B, must fit the register file.
constexpr int kTileRows = 6;
#if defined(__aarch64__)
constexpr int kTileVectors = 4;
#else
constexpr int kTileVectors = N == 16 ? 4 : 2;
#endif
constexpr int kPanel = kTileVectors * N;  // columns of one register tile

LLMCLI_INLINE int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

// Depths of a left operand that come out of vectors and are read by whole steps.
template <class P>
LLMCLI_INLINE int64_t padded(int64_t depth) {
  return round_up(depth, P::kUnit > N ? P::kUnit : N);
}

// Float32 operands; bfloat16 and float16 tensors are widened while they are packed.
struct WideProduct {
  using Element = float;
  static constexpr int kPair = 1, kUnit = 1, kRows = kTileRows;
  struct Session {};

  static LLMCLI_INLINE F broadcast(const float* a) { return set(*a); }
  static LLMCLI_INLINE F load(const float* b) { return LLMCLI_ISA::load(b); }
  static LLMCLI_INLINE F multiply_add(F a, F b, F c) { return fma(a, b, c); }
  static LLMCLI_INLINE void store(float* p, F x) { LLMCLI_ISA::store(p, x); }

  // N columns of two depths, from the first's first column on.
  static LLMCLI_INLINE void store_rows(float* to, int64_t columns, F low, F high) {
    LLMCLI_ISA::store(to, low);
    LLMCLI_ISA::store(to + columns, high);
  }

  // Whether rows of V serve as operand where they lie, for D a multiple of N.
  static constexpr bool in_place(const float*) { return true; }
  template <typename T>
  static constexpr bool in_place(const T*) {
    return false;
  }
  // Makes packed depths from n to the end of n's step zero.
  static LLMCLI_INLINE void clear_after(float*, int64_t, int64_t) {}

  // One vector of a row's elements; with n, zeros from the n-th on.
  template <typename T>
  static LLMCLI_INLINE F words(const T* p) {
    return LLMCLI_ISA::load(p);
  }
  template <typename T>
  static LLMCLI_INLINE F words(const T* p, int64_t n) {
    return n >= N ? LLMCLI_ISA::load(p) : load_n(p, n);
  }
  template <typename T>
  static LLMCLI_INLINE void pack_row(float* to, const T* from, int64_t n) {
    for (int64_t i = 0; i < n; i += N) LLMCLI_ISA::store(to + i, words(from + i, n - i));
  }
  template <typename T>
  static LLMCLI_INLINE void pack_depths(float* to, int64_t columns, const T* from, int64_t stride,
                                        int64_t depth, int64_t n) {
    for (int64_t k = 0; k < depth; ++k) pack_row(to + k * columns, from + k * stride, n);
  }
};

// Columns [0, n) of one panel, n <= kPanel, each `depth` elements from memory; the rest of the panel is zero
// up to the next multiple of N.
template <class P, typename T>
LLMCLI_INLINE void pack_transposed(typename P::Element* to, const T* from, int64_t stride, int64_t n,
                                   int64_t depth) {
  constexpr int64_t kStep = N * P::kPair;
  for (int64_t c = 0; c < n; c += N)
    for (int64_t d = 0; d < depth; d += kStep) {
      const T* const x = from + c * stride + d;
      float* const y = reinterpret_cast<float*>(to) + d / P::kPair * kPanel + c;
      F r[N];
      if (n - c >= N && depth - d >= kStep) {
        LLMCLI_UNROLL for (int i = 0; i < N; ++i) r[i] = P::words(x + i * stride);
        transpose(r);
        LLMCLI_UNROLL for (int i = 0; i < N; ++i) LLMCLI_ISA::store(y + i * kPanel, r[i]);
      } else {
        for (int i = 0; i < N; ++i) r[i] = c + i < n ? P::words(x + i * stride, depth - d) : zero();
        transpose(r);
        const int64_t words = round_up(depth - d, P::kUnit) / P::kPair;
        for (int i = 0; i < N && i < words; ++i) LLMCLI_ISA::store(y + i * kPanel, r[i]);
      }
    }
}

// One register tile; take(row, vector, sum) receives each vector of the result.
template <class P, int kRows, int kVectors, class Take>
LLMCLI_INLINE void register_tile(const typename P::Element* a, int64_t a_stride, const typename P::Element* b,
                                 int64_t b_stride, int64_t steps, const Take& take) {
  F sum[kRows][kVectors];
  LLMCLI_UNROLL for (int i = 0; i < kRows; ++i) LLMCLI_UNROLL for (int v = 0; v < kVectors; ++v) sum[i][v] =
      zero();
  for (int64_t k = 0; k < steps; ++k) {
    F y[kVectors];
    LLMCLI_UNROLL for (int v = 0; v < kVectors; ++v) y[v] = P::load(b + v * N * P::kPair);
    LLMCLI_UNROLL for (int i = 0; i < kRows; ++i) {
      const F x = P::broadcast(a + i * a_stride + k * P::kPair);
      LLMCLI_UNROLL for (int v = 0; v < kVectors; ++v) sum[i][v] = P::multiply_add(x, y[v], sum[i][v]);
    }
    b += b_stride;
  }
  LLMCLI_UNROLL for (int i = 0; i < kRows; ++i) LLMCLI_UNROLL for (int v = 0; v < kVectors; ++v)
      take(i, v, sum[i][v]);
}

// `vectors` vectors of columns for kRows rows, a register tile at a time.
template <class P, int kRows, class Take>
LLMCLI_INLINE void tile_columns(const typename P::Element* a, int64_t a_stride, const typename P::Element* b,
                                int64_t b_stride, int64_t vectors, int64_t steps, const Take& take) {
  int64_t v = 0;
  const auto shifted = [&](int i, int u, F sum) __attribute__((always_inline)) { take(i, v + u, sum); };
  constexpr int kWidth = N * P::kPair;
  for (; vectors - v >= kTileVectors; v += kTileVectors)
    register_tile<P, kRows, kTileVectors>(a, a_stride, b + v * kWidth, b_stride, steps, shifted);
  if constexpr (kTileVectors == 4) {
    if (vectors - v >= 2) {
      register_tile<P, kRows, 2>(a, a_stride, b + v * kWidth, b_stride, steps, shifted);
      v += 2;
    }
  }
  if (vectors - v >= 1) register_tile<P, kRows, 1>(a, a_stride, b + v * kWidth, b_stride, steps, shifted);
}

// A tile of up to P::kRows rows: depth = steps * kPair, strides in elements.
template <class P, class Take>
LLMCLI_INLINE void tile(int64_t rows, const typename P::Element* a, int64_t a_stride,
                        const typename P::Element* b, int64_t b_stride, int64_t vectors, int64_t steps,
                        const Take& take) {
  if constexpr (P::kUnit > P::kPair) return P::tile(rows, a, a_stride, b, b_stride, vectors, steps, take);
  if (rows == kTileRows) return tile_columns<P, kTileRows>(a, a_stride, b, b_stride, vectors, steps, take);
  int64_t i = 0;
  const auto shifted = [&](int j, int64_t v, F sum) __attribute__((always_inline)) { take(i + j, v, sum); };
  if (rows - i >= 4) {
    tile_columns<P, 4>(a, a_stride, b, b_stride, vectors, steps, shifted);
    i += 4;
  }
  if (rows - i >= 2) {
    tile_columns<P, 2>(a + i * a_stride, a_stride, b, b_stride, vectors, steps, shifted);
    i += 2;
  }
  if (rows - i >= 1) tile_columns<P, 1>(a + i * a_stride, a_stride, b, b_stride, vectors, steps, shifted);
}

// The Product for tensors of T; tile_bf16.h and tile_amx.h know better ones for bfloat16.
template <typename T>
struct ProductOf {
  using type = WideProduct;
};

}  // namespace llmcli::cpu::LLMCLI_ISA
