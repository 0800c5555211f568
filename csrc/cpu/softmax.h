// Row softmax: y = softmax(scale * x + mask), or its logarithm, over V elements; and its backward.
// Traffic: x is read from memory once (the second pass finds the row in cache), y is written once; e^(s -
// max) waits in the scratch row between its sum and its normalisation, so that it is computed once. A row
// whose every element is hidden or -inf gives zeros (log: -inf); NaN and +inf in a row give NaN.
#pragma once
#include "vec_loop.h"

namespace llmcli::cpu::LLMCLI_ISA {

enum class Score { plain, scaled, added, shown };

// The score at elements i to i + n; lanes past n are -inf.
template <typename T, Score kScore>
LLMCLI_INLINE F softmax_score(const T* x, const void* mask, F scale, int64_t i, int64_t n) {
  F s = load_up_to(x + i, n, kScore == Score::plain ? -INFINITY : 0.0f);
  if constexpr (kScore == Score::plain) return s;
  if constexpr (kScore == Score::added) {
    // Past n: 0 * scale - inf.
    return add(mul(s, scale), load_up_to(static_cast<const T*>(mask) + i, n, -INFINITY));
  } else if constexpr (kScore == Score::shown) {
    const unsigned char* m = static_cast<const unsigned char*>(mask) + i;
    return select(n >= N ? load_bool(m) : load_bool_n(m, n), mul(s, scale), set(-INFINITY));
  } else {
    s = mul(s, scale);
    if (n >= N) return s;
    float lanes[N];
    store(lanes, s);
    return load_n(lanes, n, -INFINITY);
  }
}

template <typename T, Score kScore>
LLMCLI_INLINE float softmax_max(const T* x, const void* mask, F scale, int64_t V) {
  F top[4] = {set(-INFINITY), set(-INFINITY), set(-INFINITY), set(-INFINITY)};
  int64_t i = 0;
  for (; i + 4 * N <= V; i += 4 * N) {
    for (int j = 0; j < 4; ++j) top[j] = max(top[j], softmax_score<T, kScore>(x, mask, scale, i + j * N, N));
  }
  for (; i < V; i += N) top[0] = max(top[0], softmax_score<T, kScore>(x, mask, scale, i, V - i));
  return reduce_max(max(max(top[0], top[1]), max(top[2], top[3])));
}

template <typename T, Score kScore>
void softmax_row(const SoftmaxArgs& a, const T* x, T* y, const void* mask, float* weights, const T* next) {
  const int64_t V = a.size;
  const F scale = set(a.scale);
  const float m = softmax_max<T, kScore>(x, mask, scale, V);
  // With -inf as the maximum, which may still hide a NaN, subtracting 0 leaves -inf and NaN as they are.
  const F shift = set(m == -INFINITY ? 0.0f : m);
  const auto shifted = [&](int64_t i, int64_t n) LLMCLI_INLINE_BODY {
    return sub(softmax_score<T, kScore>(x, mask, scale, i, n), shift);
  };
  if (a.log) {
    const float total = sum_vectors(
        V, [&](int64_t i, int64_t n) LLMCLI_INLINE_BODY { return exp_nonpositive(shifted(i, n)); });
    const F offset = set(total == 0.0f ? 0.0f : logf(total));
    each_vector(V, [&](int64_t i, int64_t n)
                       LLMCLI_INLINE_BODY { store_up_to(y + i, sub(shifted(i, n), offset), n); });
    return;
  }
  // The arithmetic of this pass leaves the memory idle: it fetches the next row meanwhile.
  const float total = sum_vectors(V, [&](int64_t i, int64_t n) LLMCLI_INLINE_BODY {
    __builtin_prefetch(next + i);
    const F e = exp_nonpositive<kExpDegree<T>>(shifted(i, n));
    store_up_to(weights + i, e, n);
    return e;
  });
  const F inverse = set(total == 0.0f ? 0.0f : 1.0f / total);
  each_vector(V, [&](int64_t i, int64_t n)
                     LLMCLI_INLINE_BODY { store_up_to(y + i, mul(load_up_to(weights + i, n), inverse), n); });
}

template <typename T>
void softmax_rows(const SoftmaxArgs& a, int64_t begin, int64_t end, float* scratch) {
  for (int64_t row = begin; row < end; ++row) {
    const T* x = static_cast<const T*>(a.x) + offset_of(a.x_rows, row);
    const T* next = static_cast<const T*>(a.x) + offset_of(a.x_rows, row + 1 < end ? row + 1 : row);
    T* y = static_cast<T*>(a.y) + offset_of(a.y_rows, row);
    const int64_t mask = a.mask ? offset_of(a.mask_rows, row) : 0;
    if (a.mask == nullptr && a.scale == 1.0f) {
      softmax_row<T, Score::plain>(a, x, y, nullptr, scratch, next);
    } else if (a.mask == nullptr) {
      softmax_row<T, Score::scaled>(a, x, y, nullptr, scratch, next);
    } else if (a.mask_is_bool) {
      softmax_row<T, Score::shown>(a, x, y, static_cast<const unsigned char*>(a.mask) + mask, scratch, next);
    } else {
      softmax_row<T, Score::added>(a, x, y, static_cast<const T*>(a.mask) + mask, scratch, next);
    }
  }
}

void softmax(const SoftmaxArgs& a, int64_t begin, int64_t end, float* scratch) {
  switch (a.dtype) {
    case DType::f32:
      return softmax_rows<float>(a, begin, end, scratch);
    case DType::bf16:
      return softmax_rows<bf16>(a, begin, end, scratch);
    case DType::f16:
      return softmax_rows<f16>(a, begin, end, scratch);
  }
}

// dx = scale * y * (g - sum(g * y)), of the logarithm scale * (g - e^y * sum(g)); hidden elements get 0.
template <typename T>
void softmax_backward_rows(const SoftmaxBackwardArgs& a, int64_t begin, int64_t end) {
  const int64_t V = a.size;
  const F scale = set(a.scale);
  for (int64_t row = begin; row < end; ++row) {
    const T* g = static_cast<const T*>(a.grad) + offset_of(a.grad_rows, row);
    const T* y = static_cast<const T*>(a.y) + row * V;
    T* dx = static_cast<T*>(a.dx) + row * V;
    if (a.log) {
      // A hidden element's y is -inf; its gradient must reach neither x nor the sum.
      const auto visible = [&](int64_t i, int64_t n, F yi) LLMCLI_INLINE_BODY {
        return select(less(set(-INFINITY), yi), load_up_to(g + i, n), zero());
      };
      const F total = set(sum_vectors(
          V, [&](int64_t i, int64_t n) LLMCLI_INLINE_BODY { return visible(i, n, load_up_to(y + i, n)); }));
      each_vector(V, [&](int64_t i, int64_t n) LLMCLI_INLINE_BODY {
        const F yi = load_up_to(y + i, n);
        const F d = sub(visible(i, n, yi), mul(exp_nonpositive(yi), total));
        store_up_to(dx + i, mul(scale, d), n);
      });
    } else {
      const F total = set(sum_vectors(V, [&](int64_t i, int64_t n) LLMCLI_INLINE_BODY {
        return mul(load_up_to(g + i, n), load_up_to(y + i, n));
      }));
      each_vector(V, [&](int64_t i, int64_t n) LLMCLI_INLINE_BODY {
        const F p = mul(scale, load_up_to(y + i, n));
        store_up_to(dx + i, mul(p, sub(load_up_to(g + i, n), total)), n);
      });
    }
  }
}

void softmax_backward(const SoftmaxBackwardArgs& a, int64_t begin, int64_t end) {
  switch (a.dtype) {
    case DType::f32:
      return softmax_backward_rows<float>(a, begin, end);
    case DType::bf16:
      return softmax_backward_rows<bf16>(a, begin, end);
    case DType::f16:
      return softmax_backward_rows<f16>(a, begin, end);
  }
}

}  // namespace llmcli::cpu::LLMCLI_ISA
