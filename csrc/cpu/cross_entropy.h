// Cross-entropy of rows of V logits, and their gradient in place of the logits; the sum of a matrix's parts.
// Traffic: the logits are read twice, the second time from cache, and written once; e^(x - max) waits in the
// scratch row between its sum and the gradient, so that it is computed once. With smoothing s the wanted
// distribution is 1 - s on the target and s evenly over all V (Szegedy et al. 2016, section 7):
// loss = lse - x[target] + s (x[target] - mean(x)), gradient = softmax(x) - s / V - (1 - s) [target]. A cap
// makes cap * tanh(x / cap) of the logits first.
#pragma once
#include "vec_loop.h"

namespace llmcli::cpu::LLMCLI_ISA {

LLMCLI_INLINE F bounded(const CrossEntropyArgs& a, F v) {
  if (!(a.cap > 0.0f)) return v;
  return select(less(set(-INFINITY), v), mul(set(a.cap), tanh(mul(v, set(1.0f / a.cap)))), v);
}

// Of n logits in their place: `exponential` gives e^(x - max) of them, `total` is its sum over the
// vocabulary.
template <typename T, class Exponential>
LLMCLI_INLINE void cross_entropy_gradient(const CrossEntropyArgs& a, T* x, int64_t columns, int64_t target,
                                          float total, Exponential exponential) {
  const float size = static_cast<float>(a.size), rest = a.scale * a.smoothing / size;
  const F inverse = set(a.scale / total), even = set(rest), inverse_cap = set(1.0f / a.cap);
  const auto through_cap = [&](F g, int64_t i, int64_t n) LLMCLI_INLINE_BODY {
    return a.cap > 0.0f ? mul(g, tanh_slope(tanh(mul(load_up_to(x + i, n), inverse_cap)))) : g;
  };
  const bool here = target >= 0 && target < columns;
  F of_target = zero();
  if (here) {
    const float others = a.smoothing * (1.0f - 1.0f / size);  // exact where V is 1
    float weight;
    store_n(&weight, exponential(target, 1), 1);
    of_target = through_cap(set(a.scale * ((weight / total - 1.0f) + others)), target, 1);
  }
  each_vector(columns, [&](int64_t i, int64_t n) LLMCLI_INLINE_BODY {
    const F g = sub(mul(exponential(i, n), inverse), even);
    store_up_to(x + i, through_cap(g, i, n), n);
  });
  if (here) store_n(x + target, of_target, 1);
}

template <typename T>
void no_gradient(T* x, int64_t columns) {
  each_vector(columns, [&](int64_t i, int64_t n) LLMCLI_INLINE_BODY { store_up_to(x + i, zero(), n); });
}

template <typename T>
void cross_entropy_row(const CrossEntropyArgs& a, int64_t row, float* weights) {
  const int64_t V = a.size, target = a.targets[row];
  T* const x = static_cast<T*>(a.logits) + row * V;
  if (target < 0) {
    a.losses[row] = 0.0;
    if (a.gradient) no_gradient(x, V);
    return;
  }
  const auto bounded_one = [&](float v) { return a.cap > 0.0f ? reduce_max(bounded(a, set(v))) : v; };
  const float m = bounded_one(softmax_max<T, Score::plain>(x, nullptr, zero(), V));
  const float highest = m == -INFINITY ? 0.0f : m;
  const F shift = set(highest);
  const float total = sum_vectors(V, [&](int64_t i, int64_t n) LLMCLI_INLINE_BODY {
    const F e = exp_nonpositive<kExpDegree<T>>(sub(bounded(a, load_up_to(x + i, n, -INFINITY)), shift));
    if (a.gradient) store_up_to(weights + i, e, n);
    return e;
  });
  const float lse = highest + logf(total);
  const double wanted = static_cast<double>(bounded_one(to_float(x[target])));
  double nll = static_cast<double>(lse) - wanted;
  if (a.smoothing != 0.0f) {
    const float sum = sum_vectors(
        V, [&](int64_t i, int64_t n) LLMCLI_INLINE_BODY { return bounded(a, load_up_to(x + i, n)); });
    nll += static_cast<double>(a.smoothing) * (wanted - static_cast<double>(sum / static_cast<float>(V)));
  }
  a.losses[row] = static_cast<double>(a.scale) * nll;
  if (a.sums) {
    a.sums[2 * row] = highest;
    a.sums[2 * row + 1] = total;
  }
  if (a.gradient)
    cross_entropy_gradient(a, x, V, target, total, [&](int64_t i, int64_t n) LLMCLI_INLINE_BODY {
      return load_up_to(weights + i, n);
    });
}

void cross_entropy(const CrossEntropyArgs& a, int64_t begin, int64_t end, float* scratch) {
  for (int64_t row = begin; row < end; ++row) switch (a.dtype) {
      case DType::f32:
        cross_entropy_row<float>(a, row, scratch);
        break;
      case DType::bf16:
        cross_entropy_row<bf16>(a, row, scratch);
        break;
      case DType::f16:
        cross_entropy_row<f16>(a, row, scratch);
        break;
    }
}

// The gradient again, of a part of the vocabulary: the bits of cross_entropy.
template <typename T>
void cross_entropy_part_row(const CrossEntropyArgs& a, int64_t row) {
  T* const x = static_cast<T*>(a.logits) + row * a.width;
  if (a.targets[row] < 0) return no_gradient(x, a.width);
  const F shift = set(a.sums[2 * row]);
  cross_entropy_gradient(a, x, a.width, a.targets[row] - a.first, a.sums[2 * row + 1],
                         [&](int64_t i, int64_t n) LLMCLI_INLINE_BODY {
                           const F v = bounded(a, load_up_to(x + i, n, -INFINITY));
                           return exp_nonpositive<kExpDegree<T>>(sub(v, shift));
                         });
}

void cross_entropy_part(const CrossEntropyArgs& a, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) switch (a.dtype) {
      case DType::f32:
        cross_entropy_part_row<float>(a, row);
        break;
      case DType::bf16:
        cross_entropy_part_row<bf16>(a, row);
        break;
      case DType::f16:
        cross_entropy_part_row<f16>(a, row);
        break;
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
