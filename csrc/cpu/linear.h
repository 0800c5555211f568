// Linear layer on packed weights: y = x W^T + bias, x (M, K), W (N, K), y (M, N).
// Packed weights: panels of 64 output columns; in a panel float32 and float16 lie as [K][64], bfloat16 as
// [ceil(K / 2)][64][2], the pairs that one dot-product instruction takes. The layout is the same on every
// instruction set; columns past N and the second half of an odd last pair are zero. Order: an output element
// sums K in blocks of 512, each block one chain of fused multiply-adds in rising k (pairs for bfloat16),
// block after block. It depends on K alone: one row or a thousand, any thread count, the same bits. Cost: 2 M
// N K operations; W is read once per 48 rows, so one row runs at memory speed and many at the speed of the
// multipliers. Tile: 6 rows × 4 vectors with 32 registers, 6 × 2 with 16 (4 × 2 without FMA), all in
// registers. More than 6 rows are dealt evenly to tiles and walk through K in pieces of 16 KiB of weights (32
// where several blocks of rows find them in L2), which stay in L1 while each tile continues its chains over
// them; each of the first two tiles fetches half of the next piece, a single tile as far ahead. One item is
// one panel for one block of 48 rows.
#pragma once

namespace llmcli::cpu::LLMCLI_ISA {

constexpr int64_t kLinearPanel = 64, kLinearRows = 48, kLinearBlock = 512, kLinearTile = 6;
constexpr int64_t kLinearPiece = 16384;  // bytes

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

// Continues the chains of one tile of rows × vectors over [begin, end) of K; `chains` (stride kLinearPanel)
// holds them where they have begun. Each step starts loading kFetch more lines from `next` on.
template <typename T, int kRows, int kVectors, int kFetch>
LLMCLI_INLINE void linear_tile(const LinearArgs& a, const T* x, const T* w, int64_t begin, int64_t end,
                               bool begun, const char* next, float* chains) {
  using Step = LinearStep<T>;
  F acc[kRows][kVectors];
  for (int r = 0; r < kRows; ++r)
    for (int v = 0; v < kVectors; ++v) acc[r][v] = begun ? load(chains + r * kLinearPanel + v * N) : zero();
  const T* rows[kRows];
  for (int r = 0; r < kRows; ++r) rows[r] = x + r * a.x_stride;
  const int64_t whole = begin + (end - begin) / Step::kDepth * Step::kDepth;
  for (int64_t k = begin; k < whole; k += Step::kDepth) {
    LLMCLI_UNROLL for (int i = 0; i < kFetch; ++i, next += 64) __builtin_prefetch(next, 0, 3);
    Step::template run<kRows, kVectors>(acc, rows, k, false, w + k * kLinearPanel);
  }
  if (whole < end) Step::template run<kRows, kVectors>(acc, rows, whole, true, w + whole * kLinearPanel);
  for (int r = 0; r < kRows; ++r)
    for (int v = 0; v < kVectors; ++v) store(chains + r * kLinearPanel + v * N, acc[r][v]);
}

template <typename T, int kRows, int kFetch>
LLMCLI_INLINE void linear_columns(const LinearArgs& a, const T* x, const T* w, int64_t begin, int64_t end,
                                  bool begun, const char* next, float* chains) {
  constexpr int kVectors = N == 16 ? 4 : 2;  // 32 registers or 16
  for (int64_t c = 0; c < kLinearPanel; c += kVectors * N)
    linear_tile<T, kRows, kVectors, kFetch>(a, x, w + c * LinearStep<T>::kDepth, begin, end, begun, next,
                                            chains + c);
}

template <typename T, int kFetch>
LLMCLI_INLINE void linear_rows(const LinearArgs& a, int64_t rows, const T* x, const T* w, int64_t begin,
                               int64_t end, bool begun, const char* next, float* chains) {
  switch (rows) {
    case 6:
      return linear_columns<T, 6, kFetch>(a, x, w, begin, end, begun, next, chains);
    case 5:
      return linear_columns<T, 5, kFetch>(a, x, w, begin, end, begun, next, chains);
    case 4:
      return linear_columns<T, 4, kFetch>(a, x, w, begin, end, begun, next, chains);
    case 3:
      return linear_columns<T, 3, kFetch>(a, x, w, begin, end, begun, next, chains);
    case 2:
      return linear_columns<T, 2, kFetch>(a, x, w, begin, end, begun, next, chains);
    default:
      return linear_columns<T, 1, kFetch>(a, x, w, begin, end, begun, next, chains);
  }
}

// Sums of some columns of a row, and the bias, to y from `at` on.
template <typename T>
LLMCLI_INLINE void linear_store(const LinearArgs& a, const float* sums, const T* bias, int64_t columns,
                                int64_t at) {
  const auto put = [&](auto* y) LLMCLI_INLINE_BODY {
    for (int64_t c = 0; c < columns; c += N) {
      F s = load(sums + c);
      if (bias) s = add(s, load_n(bias + c, columns - c));
      store_n(y + c, s, columns - c);
    }
  };
  a.wide ? put(static_cast<float*>(a.y) + at) : put(static_cast<T*>(a.y) + at);
}

template <typename T>
void linear_item(const LinearArgs& a, int64_t panel, int64_t row_begin, int64_t row_end) {
  const int64_t depth = LinearStep<T>::kDepth, steps = (a.inputs + depth - 1) / depth;
  const T* w = static_cast<const T*>(a.w) + panel * steps * depth * kLinearPanel;
  const int64_t column = panel * kLinearPanel, rows = row_end - row_begin;
  const int64_t columns = a.outputs - column < kLinearPanel ? a.outputs - column : kLinearPanel;
  const T* bias = a.bias ? static_cast<const T*>(a.bias) + column : nullptr;
  const T* x = static_cast<const T*>(a.x) + row_begin * a.x_stride;
  alignas(64) float sums[kLinearRows * kLinearPanel], chains[kLinearRows * kLinearPanel];
  constexpr int kStepLines = kLinearPanel * LinearStep<T>::kDepth * static_cast<int>(sizeof(T)) / 64;
  const int64_t bytes = a.rows > kLinearRows ? 2 * kLinearPiece : kLinearPiece;
  const int64_t piece =
      rows > kLinearTile ? bytes / (kLinearPanel * static_cast<int64_t>(sizeof(T))) : kLinearBlock;
  const int64_t tiles = (rows + kLinearTile - 1) / kLinearTile,
                tile = tiles > 1 ? (rows + tiles - 1) / tiles : rows;
  const bool hardware = rows == 1;  // fetches better by itself
  const auto run = [&](auto lines, int64_t row, int64_t begin, int64_t end, bool begun, const char* next,
                       float* to) LLMCLI_INLINE_BODY {
    linear_rows<T, lines>(a, rows - row < tile ? rows - row : tile, x + row * a.x_stride, w, begin, end,
                          begun, next, to + row * kLinearPanel);
  };
  using Alone = std::integral_constant<int, kStepLines>;
  using Half = std::integral_constant<int, (kStepLines + 1) / 2>;
  using None = std::integral_constant<int, 0>;
  for (int64_t block = 0; block == 0 || block < a.inputs; block += kLinearBlock) {
    const int64_t block_end = block + kLinearBlock < a.inputs ? block + kLinearBlock : a.inputs;
    float* const to = block == 0 ? sums : chains;
    for (int64_t k = block; k == block || k < block_end; k += piece) {
      const int64_t end = k + piece < block_end ? k + piece : block_end;
      const char* next = reinterpret_cast<const char*>(w + (tiles > 1 ? end : k) * kLinearPanel);
      if (tiles == 1) next += bytes;
      const int64_t half = (end - k) * kLinearPanel * static_cast<int64_t>(sizeof(T)) / 2;
      for (int64_t row = 0; row < rows; row += tile, next += half) {
        if (tiles > 1 && row < 2 * tile) {
          run(Half{}, row, k, end, k > block, next, to);
        } else if (tiles == 1 && !hardware) {
          run(Alone{}, row, k, end, k > block, next, to);
        } else {
          run(None{}, row, k, end, k > block, next, to);
        }
      }
    }
    if (block > 0)
      for (int64_t i = 0; i < rows * kLinearPanel; i += N)
        store(sums + i, add(load(sums + i), load(chains + i)));
  }
  for (int64_t row = 0; row < rows; ++row) {
    linear_store(a, sums + row * kLinearPanel, bias, columns, (row_begin + row) * a.y_stride + column);
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

// One item is one panel of 64 columns: w (N, K) to the packed layout, moving bits only, in blocks of steps
// that stay in L1 whichever way w lies in memory.
template <typename T>
void linear_pack_panel(const LinearPackArgs& a, int64_t panel) {
  constexpr int64_t kDepth = LinearStep<T>::kDepth, kBlock = 16;
  const int64_t steps = (a.inputs + kDepth - 1) / kDepth, whole = a.inputs / kDepth;
  const int64_t left = a.outputs - panel * kLinearPanel, columns = left < kLinearPanel ? left : kLinearPanel;
  const T* w = static_cast<const T*>(a.w) + panel * kLinearPanel * a.w_n;
  T* packed = static_cast<T*>(a.packed) + panel * steps * kDepth * kLinearPanel;
  if (columns < kLinearPanel || whole < steps)
    std::memset(packed, 0, static_cast<size_t>(steps * kDepth * kLinearPanel) * sizeof(T));
  const auto move = [&](int64_t s, int64_t c, int64_t n) LLMCLI_INLINE_BODY {
    for (int64_t j = 0; j < n; ++j)
      packed[(s * kLinearPanel + c) * kDepth + j] = w[c * a.w_n + (s * kDepth + j) * a.w_k];
  };
  int64_t first = 0;
  if (sizeof(T) * kDepth == 4 && a.w_k == 1 && a.w_n % kDepth == 0 && columns == kLinearPanel) {
    // A step is as wide as a float: N steps of N columns are turned in registers.
    const float* const from = reinterpret_cast<const float*>(w);
    float* const to = reinterpret_cast<float*>(packed);
    for (; first + N <= whole; first += N)
      for (int64_t c = 0; c < kLinearPanel; c += N) {
        F t[N];
        LLMCLI_UNROLL for (int i = 0; i < N; ++i) t[i] = load(from + (c + i) * (a.w_n / kDepth) + first);
        transpose(t);
        LLMCLI_UNROLL for (int i = 0; i < N; ++i) store(to + (first + i) * kLinearPanel + c, t[i]);
      }
  }
  for (int64_t block = first; block < whole; block += kBlock) {
    const int64_t end = block + kBlock < whole ? block + kBlock : whole;
    if (a.w_k == 1) {
      for (int64_t c = 0; c < columns; ++c)
        for (int64_t s = block; s < end; ++s) move(s, c, kDepth);
    } else {
      for (int64_t s = block; s < end; ++s)
        for (int64_t c = 0; c < columns; ++c) move(s, c, kDepth);
    }
  }
  if (whole < steps)
    for (int64_t c = 0; c < columns; ++c) move(whole, c, a.inputs - whole * kDepth);
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
