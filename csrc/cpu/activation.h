// GELU (Hendrycks and Gimpel, 2016) and SiLU-gate with their biases, and the backward of both. Elementwise:
// each input is read once and each output written once. Gradients of biases add rows in order within a block
// of kRowBlock rows; column_sum adds the blocks.
#pragma once
#include "vec_loop.h"

namespace llmcli::cpu::LLMCLI_ISA {

// p = 1 / (1 + e^-x) and q = 1 - p, each to full precision: both from e^-|x|, which cannot overflow.
struct Logistic {
  F p, q;
};
template <int kDegree>
LLMCLI_INLINE Logistic logistic(F x) {
  const F e = exp_nonpositive<kDegree>(sub(zero(), abs(x)));
  const F large = div(set(1.0f), add(set(1.0f), e)), small = mul(e, large);
  const M positive = less(zero(), x);
  return {select(positive, large, small), select(positive, small, large)};
}

// The tanh form of GELU: (1 + tanh(u)) / 2 is the logistic function of 2 u, here 2 u of z.
LLMCLI_INLINE F gelu_inner(F z) { return mul(z, fma(mul(z, z), set(0.0713548163f), set(1.59576912f))); }

// P(Z <= z) for a normal Z.
template <int kDegree>
LLMCLI_INLINE F normal_cdf(F z) {
  const F tail = half_erfc<kDegree>(abs(mul(z, set(0.707106781f))));
  return select(less(zero(), z), sub(set(1.0f), tail), tail);
}

template <bool kTanh, int kDegree>
LLMCLI_INLINE F gelu_value(F z) {
  if constexpr (kTanh) {
    return mul(z, logistic<kDegree>(gelu_inner(z)).p);
  } else {
    return mul(z, normal_cdf<kDegree>(z));
  }
}
template <bool kTanh, int kDegree>
LLMCLI_INLINE F gelu_slope(F z) {
  const F square = mul(z, z);
  if constexpr (kTanh) {
    const Logistic s = logistic<kDegree>(gelu_inner(z));
    const F inner_slope = fma(square, set(0.214064449f), set(1.59576912f));
    return fma(mul(z, inner_slope), mul(s.p, s.q), s.p);
  } else {
    const F density = mul(set(0.398942280f), exp_nonpositive<kDegree>(mul(square, set(-0.5f))));
    return fma(z, density, normal_cdf<kDegree>(z));
  }
}

// x + bias at i.
template <typename T, bool kBias>
LLMCLI_INLINE F biased(const T* x, const Weights<T>& bias, int64_t i, int64_t n) {
  const F v = load_up_to(x + i, n);
  if constexpr (kBias) {
    return add(v, bias(i, n));
  } else {
    return v;
  }
}
LLMCLI_INLINE void accumulate(float* sum, F x, int64_t n) { store_up_to(sum, add(load_up_to(sum, n), x), n); }

// Whole rows that lie one after the other are one long row.
LLMCLI_INLINE bool dense(const Rows& rows, int64_t size) { return rows.dims == 1 && rows.stride[0] == size; }

template <typename T, bool kBias, bool kTanh>
void gelu_rows(const GeluArgs& a, int64_t begin, int64_t end) {
  const Weights<T> bias{a.bias, a.wide_bias};
  const bool one = !kBias && dense(a.x_rows, a.size);
  const int64_t size = one ? (end - begin) * a.size : a.size;
  for (int64_t row = begin; row < (one ? begin + 1 : end); ++row) {
    const T* x = static_cast<const T*>(a.x) + offset_of(a.x_rows, row);
    T* y = static_cast<T*>(a.y) + row * a.size;
    each_vector(size, [&](int64_t i, int64_t n) LLMCLI_INLINE_BODY {
      store_up_to(y + i, gelu_value<kTanh, kExpDegree<T>>(biased<T, kBias>(x, bias, i, n)), n);
    });
  }
}

template <typename T, bool kBias, bool kTanh>
void gelu_backward_items(const GeluArgs& a, int64_t begin, int64_t end) {
  const Weights<T> bias{a.bias, a.wide_bias};
  for (int64_t item = begin; item < end; ++item) {
    const int64_t first = kBias ? item * kRowBlock : item, stop = kBias ? first + kRowBlock : item + 1;
    float* partial = kBias ? a.partial + item * a.size : nullptr;
    if (kBias) std::memset(partial, 0, static_cast<size_t>(a.size) * sizeof(float));
    for (int64_t row = first; row < (stop < a.rows ? stop : a.rows); ++row) {
      const T* x = static_cast<const T*>(a.x) + offset_of(a.x_rows, row);
      const T* g = static_cast<const T*>(a.grad) + offset_of(a.grad_rows, row);
      T* dx = static_cast<T*>(a.y) + row * a.size;
      each_vector(a.size, [&](int64_t i, int64_t n) LLMCLI_INLINE_BODY {
        const F slope = gelu_slope<kTanh, kExpDegree<T>>(biased<T, kBias>(x, bias, i, n));
        const F d = mul(load_up_to(g + i, n), slope);
        if constexpr (kBias) accumulate(partial + i, d, n);
        store_up_to(dx + i, d, n);
      });
    }
  }
}

template <typename T, bool kBias>
void silu_gate_rows(const SiluGateArgs& a, int64_t begin, int64_t end) {
  const Weights<T> gate_bias{a.gate_bias, a.wide_bias}, up_bias{a.up_bias, a.wide_bias};
  for (int64_t row = begin; row < end; ++row) {
    const T* gate = static_cast<const T*>(a.gate) + offset_of(a.gate_rows, row);
    const T* up = static_cast<const T*>(a.up) + offset_of(a.up_rows, row);
    T* y = static_cast<T*>(a.y) + row * a.size;
    each_vector(a.size, [&](int64_t i, int64_t n) LLMCLI_INLINE_BODY {
      const F z = biased<T, kBias>(gate, gate_bias, i, n);
      const F u = biased<T, kBias>(up, up_bias, i, n);
      store_up_to(y + i, mul(mul(z, logistic<kExpDegree<T>>(z).p), u), n);
    });
  }
}

template <typename T, bool kBias>
void silu_gate_backward_items(const SiluGateArgs& a, int64_t begin, int64_t end) {
  const Weights<T> gate_bias{a.gate_bias, a.wide_bias}, up_bias{a.up_bias, a.wide_bias};
  for (int64_t item = begin; item < end; ++item) {
    const int64_t first = kBias ? item * kRowBlock : item, stop = kBias ? first + kRowBlock : item + 1;
    float* partial = kBias ? a.partial + item * 2 * a.size : nullptr;
    if (kBias) std::memset(partial, 0, static_cast<size_t>(a.size) * 2 * sizeof(float));
    for (int64_t row = first; row < (stop < a.rows ? stop : a.rows); ++row) {
      const T* gate = static_cast<const T*>(a.gate) + offset_of(a.gate_rows, row);
      const T* up = static_cast<const T*>(a.up) + offset_of(a.up_rows, row);
      const T* g = static_cast<const T*>(a.grad) + offset_of(a.grad_rows, row);
      T* dgate = static_cast<T*>(a.y) + row * a.size;
      T* dup = static_cast<T*>(a.dup) + row * a.size;
      each_vector(a.size, [&](int64_t i, int64_t n) LLMCLI_INLINE_BODY {
        const F z = biased<T, kBias>(gate, gate_bias, i, n);
        const F u = biased<T, kBias>(up, up_bias, i, n);
        const F gi = load_up_to(g + i, n);
        const Logistic l = logistic<kExpDegree<T>>(z);
        const F dz = mul(mul(gi, u), fma(z, mul(l.p, l.q), l.p));
        const F du = mul(gi, mul(z, l.p));
        if constexpr (kBias) {
          accumulate(partial + i, dz, n);
          accumulate(partial + a.size + i, du, n);
        }
        store_up_to(dgate + i, dz, n);
        store_up_to(dup + i, du, n);
      });
    }
  }
}

template <typename T, bool kBias, bool kTanh>
void gelu_items(const GeluArgs& a, int64_t begin, int64_t end) {
  a.grad ? gelu_backward_items<T, kBias, kTanh>(a, begin, end) : gelu_rows<T, kBias, kTanh>(a, begin, end);
}
template <typename T>
void gelu_kind(const GeluArgs& a, int64_t begin, int64_t end) {
  if (a.tanh) {
    a.bias ? gelu_items<T, true, true>(a, begin, end) : gelu_items<T, false, true>(a, begin, end);
  } else {
    a.bias ? gelu_items<T, true, false>(a, begin, end) : gelu_items<T, false, false>(a, begin, end);
  }
}
void gelu(const GeluArgs& a, int64_t begin, int64_t end) {
  switch (a.dtype) {
    case DType::f32:
      return gelu_kind<float>(a, begin, end);
    case DType::bf16:
      return gelu_kind<bf16>(a, begin, end);
    case DType::f16:
      return gelu_kind<f16>(a, begin, end);
  }
}

template <typename T>
void silu_gate_kind(const SiluGateArgs& a, int64_t begin, int64_t end) {
  if (a.grad) {
    a.gate_bias ? silu_gate_backward_items<T, true>(a, begin, end)
                : silu_gate_backward_items<T, false>(a, begin, end);
  } else {
    a.gate_bias ? silu_gate_rows<T, true>(a, begin, end) : silu_gate_rows<T, false>(a, begin, end);
  }
}
void silu_gate(const SiluGateArgs& a, int64_t begin, int64_t end) {
  switch (a.dtype) {
    case DType::f32:
      return silu_gate_kind<float>(a, begin, end);
    case DType::bf16:
      return silu_gate_kind<bf16>(a, begin, end);
    case DType::f16:
      return silu_gate_kind<f16>(a, begin, end);
  }
}

}  // namespace llmcli::cpu::LLMCLI_ISA
