// What the kernels of attention's gradients share. With p recomputed as e^(s - lse) and delta = grad . out of
// each row (https://arxiv.org/abs/2205.14135, algorithm 4):
//   dv = p^T grad    dp = grad v^T    ds = p (dp - delta)    dq = scale ds k    dk = scale ds^T q
// One kernel goes over keys and has dk and dv, one over rows and has dq: each has items of its own side,
// walks in order through the other side's, and sums into its own registers alone, so that every sum has one
// order. The price is seven products where five would do; nothing is kept of the scores.
#pragma once
#include "attention.h"

namespace llmcli::cuda {

using cpu::AttentionBackwardArgs;

// What a row's weights need beside its products: lse in base 2 and what float32 drops of it, delta, limit.
struct alignas(16) RowStatistics {
  float lse, rest, delta;
  int limit;
};
// Of a head's rows; they lie in the working memory.
__device__ inline RowStatistics* statistics_of(const AttentionBackwardArgs& a, int64_t head) {
  return reinterpret_cast<RowStatistics*>(a.partial) + head * a.T * (a.H / a.G);
}

// The two sides of the scores by the numbers of their items: where the factor of the score lies and that of
// its gradient, null behind the last item.
template <class T>
struct RowSide {
  const AttentionBackwardArgs& a;
  const Head& head;

  __device__ const T* score(int64_t row) const {
    const QueryRow query(a, head, row);
    return query.there ? query.q<T>(a, head) : nullptr;
  }
  __device__ const T* gradient(int64_t row) const {
    const QueryRow query(a, head, row);
    const int64_t at = head.b * a.grad_b + query.t * a.grad_t + query.h * a.grad_h;
    return query.there ? static_cast<const T*>(a.grad) + at : nullptr;
  }
};
template <class T>
struct KeySide {
  const AttentionBackwardArgs& a;
  const Head& head;

  __device__ const T* score(int64_t key) const {
    return key < head.keys ? head.k<T>(a) + key * a.k_s : nullptr;
  }
  __device__ const T* gradient(int64_t key) const {
    return key < head.keys ? head.v<T>(a) + key * a.v_s : nullptr;
  }
};

// Own and other side of the kernel over keys, or over rows; the other side's items that its own can meet.
template <class T, bool kOfKeys>
struct Sides;
template <class T>
struct Sides<T, true> {
  KeySide<T> own;
  RowSide<T> other;
  int64_t begin, end;

  __device__ Sides(const AttentionBackwardArgs& a, const Head& head, int64_t first, int64_t)
      : own{a, head}, other{a, head} {
    const int64_t group = a.H / a.G;
    begin = a.causal ? max(first + a.T - head.keys, int64_t{0}) * group : 0;
    end = first < head.keys ? a.T * group : 0;
  }
};
template <class T>
struct Sides<T, false> {
  RowSide<T> own;
  KeySide<T> other;
  int64_t begin = 0, end;

  __device__ Sides(const AttentionBackwardArgs& a, const Head& head, int64_t first, int64_t count)
      : own{a, head}, other{a, head} {
    end = QueryRow(a, head, min(first + count, a.T * (a.H / a.G)) - 1).limit;
  }
};

// The weight of a row's score with a key in place of the score's product, the score's gradient in place of
// dp. `plain`: the row sees the key, and there is neither bias nor cap.
template <bool kOfKeys>
__device__ void weigh(const AttentionBackwardArgs& a, const Head& head, int64_t row, int key,
                      const RowStatistics& of, bool plain, float& s, float& dp) {
  if (!plain && key >= of.limit) {
    s = dp = 0.0f;
    return;
  }
  const float product = s;
  const float score = plain ? fmaf(product, a.scale * kLog2E, -of.lse)
                            : score_of(a, head, row, of.limit, key, product) - of.lse;
  s = exp2_fast(score - of.rest);
  dp = s * (dp - of.delta);
  if (plain) return;
  if (!kOfKeys && a.dbias) {
    const QueryRow query(a, head, row);
    a.dbias[((head.b * a.H + query.h) * a.T + query.t) * a.S + key] = dp;
  }
  if (a.cap > 0.0f) {
    const float capped = tanh_fast(product * (a.scale / a.cap));
    dp *= 1.0f - capped * capped;
  }
}

// Where the gradients of an item begin: dk and dv of a key, or dq of a row.
__device__ inline int64_t offset_of_key(const AttentionBackwardArgs& a, const Head& head, int64_t key) {
  return ((head.b * a.S + key) * a.G + head.g) * a.D;
}
__device__ inline int64_t offset_of_row(const AttentionBackwardArgs& a, const Head& head, int64_t row) {
  const QueryRow query(a, head, row);
  return ((head.b * a.T + query.t) * a.H + query.h) * a.D;
}

}  // namespace llmcli::cuda
