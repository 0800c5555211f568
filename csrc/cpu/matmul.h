// Product of float32 matrices in any layout, c = a b or c + a b, plus a bias: a (M, K), b (K, N), c (M, N)
// with rows of its own. For training, where weights change with every step and gradients want both their
// layouts. Order: an element sums K in blocks of 128, each one chain of fused multiply-adds in rising k,
// block after block: it depends on K alone. Cost: 2 M N K operations. b is packed once, in panels of
// [128][64] that stay in L1 while the tiles of 6 rows pass; a is read where it lies, or, where its rows are
// not contiguous, copied in blocks of 128 × 240 first. Scratch: 128 rows of up to 1,536 columns of b, and a
// block of a.
#pragma once
#include "vec_loop.h"

namespace llmcli::cpu::LLMCLI_ISA {

constexpr int64_t kMatmulTile = 6;  // rows; divides kMatmulRows

// A tile of kRows rows by a panel of `columns` <= 64: c (+)= a panel, over `depth` steps.
template <int kRows>
LLMCLI_INLINE void matmul_tile(const float* a, int64_t a_m, int64_t a_k, const float* panel, int64_t depth,
                               float* c, int64_t c_m, int64_t columns, bool add_to, const float* bias) {
  constexpr int kVectors = N == 16 ? 4 : 2;  // 32 registers or 16
  for (int64_t n = 0; n < columns; n += kVectors * N) {
    F acc[kRows][kVectors];
    for (int r = 0; r < kRows; ++r)
      for (int v = 0; v < kVectors; ++v) acc[r][v] = zero();
    const float* rows[kRows];
    for (int r = 0; r < kRows; ++r) rows[r] = a + r * a_m;
    const float* b = panel + n;
    int64_t at = 0;
    for (int64_t k = 0; k < depth; ++k, at += a_k, b += kMatmulPanel) {
      F bk[kVectors];
      for (int v = 0; v < kVectors; ++v) bk[v] = load(b + v * N);
      for (int r = 0; r < kRows; ++r) {
        const F ak = set(rows[r][at]);
        for (int v = 0; v < kVectors; ++v) acc[r][v] = fma(ak, bk[v], acc[r][v]);
      }
    }
    for (int r = 0; r < kRows; ++r)
      for (int v = 0; v < kVectors; ++v) {
        const int64_t left = columns - n - v * N;
        if (left <= 0) continue;
        float* const to = c + r * c_m + n + v * N;
        F sum = add_to ? add(load_up_to(to, left), acc[r][v]) : acc[r][v];
        if (bias) sum = add(sum, load_up_to(bias + n + v * N, left));
        store_up_to(to, sum, left);
      }
  }
}

LLMCLI_INLINE void matmul_rows(int64_t rows, const float* a, int64_t a_m, int64_t a_k, const float* panel,
                               int64_t depth, float* c, int64_t c_m, int64_t columns, bool add_to,
                               const float* bias) {
  switch (rows) {
    case 6:
      return matmul_tile<6>(a, a_m, a_k, panel, depth, c, c_m, columns, add_to, bias);
    case 5:
      return matmul_tile<5>(a, a_m, a_k, panel, depth, c, c_m, columns, add_to, bias);
    case 4:
      return matmul_tile<4>(a, a_m, a_k, panel, depth, c, c_m, columns, add_to, bias);
    case 3:
      return matmul_tile<3>(a, a_m, a_k, panel, depth, c, c_m, columns, add_to, bias);
    case 2:
      return matmul_tile<2>(a, a_m, a_k, panel, depth, c, c_m, columns, add_to, bias);
    default:
      return matmul_tile<1>(a, a_m, a_k, panel, depth, c, c_m, columns, add_to, bias);
  }
}

// b (depth, columns <= 64) → [depth][64], zeros past the last column.
inline void matmul_pack(const float* b, int64_t b_k, int64_t b_n, int64_t depth, int64_t columns, float* to) {
  if (b_n == 1) {
    for (int64_t k = 0; k < depth; ++k)
      for (int64_t n = 0; n < kMatmulPanel; n += N)
        store(to + k * kMatmulPanel + n, n < columns ? load_up_to(b + k * b_k + n, columns - n) : zero());
    return;
  }
  for (int64_t n = 0; n < kMatmulPanel; n += N) {
    const int64_t wide = columns - n < N ? columns - n : N;
    int64_t k = 0;
    if (b_k == 1 && wide == N)
      for (; k + N <= depth; k += N) {
        F r[N];
        for (int64_t i = 0; i < N; ++i) r[i] = load(b + k + (n + i) * b_n);
        transpose(r);
        for (int64_t i = 0; i < N; ++i) store(to + (k + i) * kMatmulPanel + n, r[i]);
      }
    for (; k < depth; ++k)
      for (int64_t i = 0; i < N; ++i)
        to[k * kMatmulPanel + n + i] = i < wide ? b[k * b_k + (n + i) * b_n] : 0.0f;
  }
}

// Some columns of the product, over all of K: their blocks of b fit into L2.
inline void matmul_columns(const MatmulArgs& g, int64_t begin, int64_t end, float* panels, float* rows) {
  const bool copied = g.a_k != 1;
  const int64_t a_m = copied ? 1 : g.a_m, a_k = copied ? kMatmulRows : 1;
  for (int64_t k = 0; k < g.K; k += kMatmulDepth) {
    const int64_t depth = g.K - k < kMatmulDepth ? g.K - k : kMatmulDepth;
    const bool add_to = g.add || k > 0;
    const float* const bias = k + depth == g.K ? g.bias : nullptr;
    for (int64_t n = begin; n < end; n += kMatmulPanel)
      matmul_pack(g.b + k * g.b_k + n * g.b_n, g.b_k, g.b_n, depth,
                  end - n < kMatmulPanel ? end - n : kMatmulPanel, panels + (n - begin) * kMatmulDepth);
    for (int64_t m = 0; m < g.M; m += kMatmulRows) {
      const int64_t some = g.M - m < kMatmulRows ? g.M - m : kMatmulRows;
      const float* a = g.a + m * g.a_m + k * g.a_k;
      if (copied) {
        for (int64_t i = 0; i < depth; ++i)
          for (int64_t r = 0; r < some; ++r) rows[i * kMatmulRows + r] = a[i * g.a_k + r * g.a_m];
        a = rows;
      }
      for (int64_t n = begin; n < end; n += kMatmulPanel)
        for (int64_t r = 0; r < some; r += kMatmulTile)
          matmul_rows(some - r < kMatmulTile ? some - r : kMatmulTile, a + r * a_m, a_m, a_k,
                      panels + (n - begin) * kMatmulDepth, depth, g.c + (m + r) * g.c_m + n, g.c_m,
                      end - n < kMatmulPanel ? end - n : kMatmulPanel, add_to, bias ? bias + n : nullptr);
    }
  }
}

inline void matmul(const MatmulArgs& g, void* scratch) {
  if (g.K == 0 && !g.add)
    for (int64_t m = 0; m < g.M; ++m)
      each_vector(g.N, [&](int64_t i, int64_t n) LLMCLI_INLINE_BODY {
        store_up_to(g.c + m * g.c_m + i, g.bias ? load_up_to(g.bias + i, n) : zero(), n);
      });
  float* const panels = static_cast<float*>(scratch);
  float* const rows = panels + kMatmulDepth * matmul_panels(g.N);
  for (int64_t n = 0; n < g.N; n += kMatmulColumns)
    matmul_columns(g, n, n + kMatmulColumns < g.N ? n + kMatmulColumns : g.N, panels, rows);
}

}  // namespace llmcli::cpu::LLMCLI_ISA
