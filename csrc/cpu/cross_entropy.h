// Cross-entropy of rows of V logits, and their gradient in place of the logits; the sum of a matrix's parts.
// Traffic: the logits are read twice, the second time from cache, and written once; e^(x - max) waits in the
// scratch row between its sum and the gradient, so that it is computed once. With smoothing s the wanted
// distribution is 1 - s on the target and s evenly over all V (Szegedy et al. 2016, section 7):
// loss = lse - x[target] + s (x[target] - mean(x)), gradient = softmax(x) - s / V - (1 - s) [target]. A cap
// makes cap * tanh(x / cap) of the logits first.
#pragma once
#include "vec_loop.h"

namespace llmcli::cpu::LLMCLI_ISA {

template <typename T>
void cross_entropy_row(const CrossEntropyArgs& a, T* x, int64_t target, double* loss, float* weights) {
  const int64_t V = a.size;
  if (target < 0) {
    *loss = 0.0;
    if (a.gradient)
      each_vector(V, [&](int64_t i, int64_t n) LLMCLI_INLINE_BODY { store_up_to(x + i, zero(), n); });
    return;
  }
  const bool capped = a.cap > 0.0f;
  const F cap = set(a.cap), inverse_cap = set(1.0f / a.cap), hidden = set(-INFINITY);
  const auto bounded = [&](F v) LLMCLI_INLINE_BODY {
    return capped ? select(less(hidden, v), mul(cap, tanh(mul(v, inverse_cap))), v) : v;
  };
  const auto bounded_one = [&](float v) { return capped ? reduce_max(bounded(set(v))) : v; };
  const float m = bounded_one(softmax_max<T, Score::plain>(x, nullptr, zero(), V));
  const F shift = set(m == -INFINITY ? 0.0f : m);
  const float total = sum_vectors(V, [&](int64_t i, int64_t n) LLMCLI_INLINE_BODY {
    const F e = exp_nonpositive<kExpDegree<T>>(sub(bounded(load_up_to(x + i, n, -INFINITY)), shift));
    if (a.gradient) store_up_to(weights + i, e, n);
    return e;
  });
  const float lse = (m == -INFINITY ? 0.0f : m) + logf(total), size = static_cast<float>(V);
  const double wanted = static_cast<double>(bounded_one(to_float(x[target])));
  double nll = static_cast<double>(lse) - wanted;
  if (a.smoothing != 0.0f) {
    const float sum = sum_vectors(
        V, [&](int64_t i, int64_t n) LLMCLI_INLINE_BODY { return bounded(load_up_to(x + i, n)); });
    nll += static_cast<double>(a.smoothing) * (wanted - static_cast<double>(sum / size));
  }
  *loss = static_cast<double>(a.scale) * nll;
  if (!a.gradient) return;
  const float rest = a.scale * a.smoothing / size;
  const F inverse = set(a.scale / total), even = set(rest);
  const auto through_cap = [&](F g, int64_t i, int64_t n) LLMCLI_INLINE_BODY {
    return capped ? mul(g, tanh_slope(tanh(mul(load_up_to(x + i, n), inverse_cap)))) : g;
  };
  const float others = a.smoothing * (1.0f - 1.0f / size);  // exact where V is 1
  const F of_target = through_cap(set(a.scale * ((weights[target] / total - 1.0f) + others)), target, 1);
  each_vector(V, [&](int64_t i, int64_t n) LLMCLI_INLINE_BODY {
    const F g = sub(mul(load_up_to(weights + i, n), inverse), even);
    store_up_to(x + i, through_cap(g, i, n), n);
  });
  store_n(x + target, of_target, 1);
}

template <typename T>
void cross_entropy_rows(const CrossEntropyArgs& a, int64_t begin, int64_t end, float* scratch) {
  for (int64_t row = begin; row < end; ++row)
    cross_entropy_row<T>(a, static_cast<T*>(a.logits) + row * a.size, a.targets[row], a.losses + row,
                         scratch);
}

void cross_entropy(const CrossEntropyArgs& a, int64_t begin, int64_t end, float* scratch) {
  switch (a.dtype) {
    case DType::f32:
      return cross_entropy_rows<float>(a, begin, end, scratch);
    case DType::bf16:
      return cross_entropy_rows<bf16>(a, begin, end, scratch);
    case DType::f16:
      return cross_entropy_rows<f16>(a, begin, end, scratch);
  }
}

template <typename T>
void accumulate_row(const AccumulateArgs& a, int64_t row) {
  const T* part = static_cast<const T*>(a.part) + row * a.size;
  float* sum = a.sum + row * a.size;
  T* y = a.y ? static_cast<T*>(a.y) + row * a.size : nullptr;
  each_vector(a.size, [&](int64_t i, int64_t n) LLMCLI_INLINE_BODY {
    F s = load_up_to(part + i, n);
    if (!a.first) s = add(load_up_to(sum + i, n), s);
    if (y) {
      store_up_to(y + i, s, n);
    } else {
      store_up_to(sum + i, s, n);
    }
  });
}

void accumulate(const AccumulateArgs& a, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) switch (a.dtype) {
      case DType::f32:
        accumulate_row<float>(a, row);
        break;
      case DType::bf16:
        accumulate_row<bf16>(a, row);
        break;
      case DType::f16:
        accumulate_row<f16>(a, row);
        break;
    }
}

}  // namespace llmcli::cpu::LLMCLI_ISA
