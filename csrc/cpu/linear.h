// Linear layer on packed weights: y = x W^T + bias, x (M, K), W (N, K), y (M, N).
// Packed weights: panels of 64 output columns; in a panel float32 and float16 lie as [K][64], bfloat16 as
// [ceil(K / 2)][64][2], the pairs that one dot-product instruction takes. The layout is the same on every
// instruction set; columns past N and the second half of an odd last pair are zero. Order: an output element
// sums K in blocks of 512, each block one chain of fused multiply-adds in rising k (pairs for bfloat16),
// block after block. It depends on K alone: one row or a thousand, any thread count, the same bits. Cost: 2 M
// N K operations; W is read once per 48 rows, so one row runs at memory speed and many at the speed of the
// multipliers. Tile: 6 rows × 4 vectors with 32 registers, 6 × 2 with 16 (4 × 2 without FMA), all in
// registers. One item is one panel for one block of 48 rows.
#pragma once

namespace llmcli::cpu::LLMCLI_ISA {

constexpr int64_t kLinearPanel = 64, kLinearRows = 48, kLinearBlock = 512;

// acc += x[0] * w[0] (+ x[1] * w[1] for bfloat16, whose step takes a pair) for kVectors vectors of columns.
template <typename T>
struct LinearStep {
  static constexpr int kDepth = 1;
  template <int kRows, int kVectors>
  static LLMCLI_INLINE void run(F (&acc)[kRows][kVectors], const T* const (&x)[kRows], int64_t k, bool,
                                const T* w) {
    F b[kVectors];
    for (int v = 0; v < kVectors; ++v) b[v] = load(w + v * N);
    for (int r = 0; r < kRows; ++r) {
      const F a = set(to_float(x[r][k]));
      for (int v = 0; v < kVectors; ++v) acc[r][v] = fma(a, b[v], acc[r][v]);
    }
  }
};

template <>
struct LinearStep<bf16> {
  static constexpr int kDepth = 2;
  // `last` marks the final element of an odd K: its partner in the pair is zero and x must not be read past
  // its end.
  template <int kRows, int kVectors>
  static LLMCLI_INLINE void run(F (&acc)[kRows][kVectors], const bf16* const (&x)[kRows], int64_t k,
                                bool last, const bf16* w) {
#if defined(LLMCLI_HAS_BF16)
    __m512bh b[kVectors];
    for (int v = 0; v < kVectors; ++v) b[v] = (__m512bh)_mm512_loadu_si512(w + 2 * v * N);
    for (int r = 0; r < kRows; ++r) {
      uint32_t pair = x[r][k].bits;
      if (!last) std::memcpy(&pair, x[r] + k, 4);
      const __m512bh a = (__m512bh)_mm512_set1_epi32(static_cast<int>(pair));
      for (int v = 0; v < kVectors; ++v) acc[r][v] = _mm512_dpbf16_ps(acc[r][v], a, b[v]);
    }
#else
    F even[kVectors], odd[kVectors];
    for (int v = 0; v < kVectors; ++v) load_pairs(w + 2 * v * N, &even[v], &odd[v]);
    for (int r = 0; r < kRows; ++r) {
      const F a0 = set(to_float(x[r][k])), a1 = last ? zero() : set(to_float(x[r][k + 1]));
      for (int v = 0; v < kVectors; ++v) acc[r][v] = fma(a1, odd[v], fma(a0, even[v], acc[r][v]));
    }
#endif
  }
};

// One tile of rows × vectors over [begin, end) of K; `sums` carries the blocks before this one (stride
// kLinearPanel).
template <typename T, int kRows, int kVectors>
LLMCLI_INLINE void linear_tile(const LinearArgs& a, const T* x, const T* w, int64_t begin, int64_t end,
                               bool first, float* sums) {
  using Step = LinearStep<T>;
  F acc[kRows][kVectors];
  for (int r = 0; r < kRows; ++r)
    for (int v = 0; v < kVectors; ++v) acc[r][v] = zero();
  const T* rows[kRows];
  for (int r = 0; r < kRows; ++r) rows[r] = x + r * a.x_stride;
  const int64_t whole = begin + (end - begin) / Step::kDepth * Step::kDepth;
  for (int64_t k = begin; k < whole; k += Step::kDepth)
    Step::template run<kRows, kVectors>(acc, rows, k, false, w + k * kLinearPanel);
  if (whole < end) Step::template run<kRows, kVectors>(acc, rows, whole, true, w + whole * kLinearPanel);
  for (int r = 0; r < kRows; ++r)
    for (int v = 0; v < kVectors; ++v) {
      float* sum = sums + r * kLinearPanel + v * N;
      store(sum, first ? acc[r][v] : add(load(sum), acc[r][v]));
    }
}

template <typename T, int kRows>
LLMCLI_INLINE void linear_rows(const LinearArgs& a, const T* x, const T* w, float* sums) {
#if defined(__AVX512F__)
  constexpr int kVectors = 4;
#else
  constexpr int kVectors = 2;
#endif
  for (int64_t begin = 0; begin == 0 || begin < a.inputs; begin += kLinearBlock) {
    const int64_t end = begin + kLinearBlock < a.inputs ? begin + kLinearBlock : a.inputs;
    for (int64_t c = 0; c < kLinearPanel; c += kVectors * N)
      linear_tile<T, kRows, kVectors>(a, x, w + c * LinearStep<T>::kDepth, begin, end, begin == 0, sums + c);
  }
}

template <typename T>
void linear_item(const LinearArgs& a, int64_t panel, int64_t row_begin, int64_t row_end) {
  const int64_t depth = LinearStep<T>::kDepth, steps = (a.inputs + depth - 1) / depth;
  const T* w = static_cast<const T*>(a.w) + panel * steps * depth * kLinearPanel;
  const int64_t column = panel * kLinearPanel;
  const int64_t columns = a.outputs - column < kLinearPanel ? a.outputs - column : kLinearPanel;
  const T* bias = a.bias ? static_cast<const T*>(a.bias) + column : nullptr;
  alignas(64) float sums[6 * kLinearPanel];
  for (int64_t row = row_begin; row < row_end;) {
    const T* x = static_cast<const T*>(a.x) + row * a.x_stride;
    const int64_t left = row_end - row;
    const int64_t rows = left < 6 ? left : 6;
    switch (rows) {
      case 6:
        linear_rows<T, 6>(a, x, w, sums);
        break;
      case 5:
        linear_rows<T, 5>(a, x, w, sums);
        break;
      case 4:
        linear_rows<T, 4>(a, x, w, sums);
        break;
      case 3:
        linear_rows<T, 3>(a, x, w, sums);
        break;
      case 2:
        linear_rows<T, 2>(a, x, w, sums);
        break;
      default:
        linear_rows<T, 1>(a, x, w, sums);
        break;
    }
    for (int64_t r = 0; r < rows; ++r) {
      T* y = static_cast<T*>(a.y) + (row + r) * a.y_stride + column;
      for (int64_t c = 0; c < columns; c += N) {
        F s = load(sums + r * kLinearPanel + c);
        if (bias) s = add(s, load_n(bias + c, columns - c));
        store_n(y + c, s, columns - c);
      }
    }
    row += rows;
  }
}

// Rows vary slowest within a panel, so that a panel's weights stay in cache over its row blocks.
inline void linear(const LinearArgs& a, int64_t begin, int64_t end) {
  const int64_t blocks = (a.rows + kLinearRows - 1) / kLinearRows;
  for (int64_t item = begin; item < end; ++item) {
    const int64_t panel = item / blocks, row = item % blocks * kLinearRows;
    const int64_t row_end = row + kLinearRows < a.rows ? row + kLinearRows : a.rows;
    switch (a.dtype) {
      case DType::f32:
        linear_item<float>(a, panel, row, row_end);
        break;
      case DType::bf16:
        linear_item<bf16>(a, panel, row, row_end);
        break;
      case DType::f16:
        linear_item<f16>(a, panel, row, row_end);
        break;
    }
  }
}

// One item is one panel of 64 columns: w (N, K) rows to the packed layout, moving bits only.
template <typename T>
void linear_pack_panel(const LinearPackArgs& a, int64_t panel) {
  constexpr int64_t kDepth = LinearStep<T>::kDepth;
  const int64_t steps = (a.inputs + kDepth - 1) / kDepth;
  const T* w = static_cast<const T*>(a.w);
  T* packed = static_cast<T*>(a.packed) + panel * steps * kDepth * kLinearPanel;
  for (int64_t c = 0; c < kLinearPanel; ++c) {
    const int64_t column = panel * kLinearPanel + c;
    for (int64_t s = 0; s < steps; ++s)
      for (int64_t j = 0; j < kDepth; ++j) {
        const int64_t k = s * kDepth + j;
        T* to = packed + (s * kLinearPanel + c) * kDepth + j;
        if (column < a.outputs && k < a.inputs) {
          *to = w[column * a.w_stride + k];
        } else {
          std::memset(to, 0, sizeof(T));
        }
      }
  }
}

inline void linear_pack(const LinearPackArgs& a, int64_t begin, int64_t end) {
  for (int64_t panel = begin; panel < end; ++panel) switch (a.dtype) {
      case DType::f32:
        linear_pack_panel<float>(a, panel);
        break;
      case DType::bf16:
        linear_pack_panel<bf16>(a, panel);
        break;
      case DType::f16:
        linear_pack_panel<f16>(a, panel);
        break;
    }
}

}  // namespace llmcli::cpu::LLMCLI_ISA
