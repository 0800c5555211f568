// Layer norm (Ba et al., 2016) and RMS norm (Zhang and Sennrich, 2019) over C elements, with or without the
// residual add, and their backward. Traffic: each input row is read from memory once and each output row
// written once; further passes find the row in cache. The backward computes the statistics again instead of
// storing them. Sums: vec_loop.h's order over C; gradients of weights add rows in order within a block, then
// blocks in order.
#pragma once
#include "vec_loop.h"

namespace llmcli::cpu::LLMCLI_ISA {

// Normalised element: (x - mean) * inverse + shift. The mean is rounded to float; `shift` makes up for it, so
// that a large common offset costs no precision.
struct Statistics {
  F mean, inverse, shift;
  LLMCLI_INLINE F normalised(F x) const { return fma(sub(x, mean), inverse, shift); }
};

template <typename T, bool kRms>
LLMCLI_INLINE Statistics norm_statistics(const T* x, int64_t C, float eps) {
  const float size = static_cast<float>(C);
  if constexpr (kRms) {
    const float squares = sum_vectors(C, [&](int64_t i, int64_t n) LLMCLI_INLINE_BODY {
      const F v = load_up_to(x + i, n);
      return mul(v, v);
    });
    return {zero(), set(1.0f / sqrtf(squares / size + eps)), zero()};
  } else {
    const float mean =
        sum_vectors(C, [&](int64_t i, int64_t n) LLMCLI_INLINE_BODY { return load_up_to(x + i, n); }) / size;
    const F center = set(mean);
    F errors = zero();
    const float squares = sum_vectors(C, [&](int64_t i, int64_t n) LLMCLI_INLINE_BODY {
      const F d = sub(load_up_to(x + i, n, mean), center);
      errors = add(errors, d);
      return mul(d, d);
    });
    const float error = reduce_add(errors) / size;
    const float variance = squares / size - error * error;
    const float inverse = 1.0f / sqrtf((variance < 0.0f ? 0.0f : variance) + eps);
    return {center, set(inverse), set(-error * inverse)};
  }
}

template <typename T, bool kRms>
void norm_rows(const NormArgs& a, int64_t begin, int64_t end) {
  const int64_t C = a.size;
  const Weights<T> weight{a.weight, a.wide_weight}, bias{a.bias, a.wide_weight};
  for (int64_t row = begin; row < end; ++row) {
    const T* x = static_cast<const T*>(a.x) + offset_of(a.x_rows, row);
    T* y = static_cast<T*>(a.y) + row * C;
    if (a.residual) {
      const T* residual = static_cast<const T*>(a.residual) + offset_of(a.residual_rows, row);
      T* total = static_cast<T*>(a.total) + row * C;
      each_vector(C, [&](int64_t i, int64_t n) LLMCLI_INLINE_BODY {
        store_up_to(total + i, add(load_up_to(x + i, n), load_up_to(residual + i, n)), n);
      });
      x = total;
    }
    const Statistics s = norm_statistics<T, kRms>(x, C, a.eps);
    if (a.bias) {
      each_vector(C, [&](int64_t i, int64_t n) LLMCLI_INLINE_BODY {
        const F v = s.normalised(load_up_to(x + i, n));
        store_up_to(y + i, fma(v, weight(i, n), bias(i, n)), n);
      });
    } else {
      each_vector(C, [&](int64_t i, int64_t n) LLMCLI_INLINE_BODY {
        store_up_to(y + i, mul(s.normalised(load_up_to(x + i, n)), weight(i, n)), n);
      });
    }
  }
}

// With v the normalised row and h = grad * weight: dx = (h - mean(h) - v * mean(h * v)) * inverse, without
// mean(h) in RMS norm.
template <typename T, bool kRms>
void norm_backward_blocks(const NormBackwardArgs& a, int64_t begin, int64_t end) {
  const int64_t C = a.size;
  const Weights<T> weight{a.weight, a.wide_weight};
  for (int64_t block = begin; block < end; ++block) {
    float* dweight = a.partial + block * (kRms ? 1 : 2) * C;
    float* dbias = dweight + C;
    std::memset(dweight, 0, static_cast<size_t>(C) * (kRms ? 1 : 2) * sizeof(float));
    const int64_t first = block * kRowBlock, last = first + kRowBlock < a.rows ? first + kRowBlock : a.rows;
    for (int64_t row = first; row < last; ++row) {
      const T* g = static_cast<const T*>(a.grad) + offset_of(a.grad_rows, row);
      const T* x = static_cast<const T*>(a.x) + offset_of(a.x_rows, row);
      T* dx = static_cast<T*>(a.dx) + row * C;
      const Statistics s = norm_statistics<T, kRms>(x, C, a.eps);
      F h_sum = zero();
      const float hv_sum = sum_vectors(C, [&](int64_t i, int64_t n) LLMCLI_INLINE_BODY {
        const F gi = load_up_to(g + i, n);
        const F v = s.normalised(load_up_to(x + i, n));
        const F h = mul(gi, weight(i, n));
        store_up_to(dweight + i, fma(gi, v, load_up_to(dweight + i, n)), n);
        if constexpr (!kRms) {
          store_up_to(dbias + i, add(gi, load_up_to(dbias + i, n)), n);
          h_sum = add(h_sum, h);
        }
        return mul(h, v);
      });
      const F hv_mean = set(hv_sum / static_cast<float>(C));
      const F h_mean = set(kRms ? 0.0f : reduce_add(h_sum) / static_cast<float>(C));
      const T* extra = a.extra ? static_cast<const T*>(a.extra) + offset_of(a.extra_rows, row) : nullptr;
      each_vector(C, [&](int64_t i, int64_t n) LLMCLI_INLINE_BODY {
        const F v = s.normalised(load_up_to(x + i, n));
        const F h = mul(load_up_to(g + i, n), weight(i, n));
        const F centred = sub(sub(h, h_mean), mul(v, hv_mean));
        const F d = extra ? fma(centred, s.inverse, load_up_to(extra + i, n)) : mul(centred, s.inverse);
        store_up_to(dx + i, d, n);
      });
    }
  }
}

template <typename T>
void norm_kind(const NormArgs& a, int64_t begin, int64_t end) {
  return a.rms ? norm_rows<T, true>(a, begin, end) : norm_rows<T, false>(a, begin, end);
}
template <typename T>
void norm_kind(const NormBackwardArgs& a, int64_t begin, int64_t end) {
  return a.rms ? norm_backward_blocks<T, true>(a, begin, end) : norm_backward_blocks<T, false>(a, begin, end);
}

template <typename Args>
LLMCLI_INLINE void norm_any(const Args& a, int64_t begin, int64_t end) {
  switch (a.dtype) {
    case DType::f32:
      return norm_kind<float>(a, begin, end);
    case DType::bf16:
      return norm_kind<bf16>(a, begin, end);
    case DType::f16:
      return norm_kind<f16>(a, begin, end);
  }
}

void norm(const NormArgs& a, int64_t begin, int64_t end) { norm_any(a, begin, end); }
void norm_backward(const NormBackwardArgs& a, int64_t begin, int64_t end) { norm_any(a, begin, end); }

}  // namespace llmcli::cpu::LLMCLI_ISA
