// cap * tanh(x / cap), which keeps logits within a cap (Bello et al. 2016; Gemma 2), and its gradient.
// Elementwise: each input is read once and the output written once.
#pragma once
#include "vec_loop.h"

namespace llmcli::cpu::LLMCLI_ISA {

template <typename T>
void softcap_rows(const SoftcapArgs& a, int64_t begin, int64_t end) {
  const F cap = set(a.cap), inverse = set(1.0f / a.cap);
  const T* x = static_cast<const T*>(a.x) + begin * a.size;
  T* y = static_cast<T*>(a.y) + begin * a.size;
  const T* grad = a.grad ? static_cast<const T*>(a.grad) + begin * a.size : nullptr;
  each_vector((end - begin) * a.size, [&](int64_t i, int64_t n) LLMCLI_INLINE_BODY {
    const F t = tanh(mul(load_up_to(x + i, n), inverse));
    const F result = grad ? mul(load_up_to(grad + i, n), tanh_slope(t)) : mul(cap, t);
    store_up_to(y + i, result, n);
  });
}

void softcap(const SoftcapArgs& a, int64_t begin, int64_t end) {
  switch (a.dtype) {
    case DType::f32:
      return softcap_rows<float>(a, begin, end);
    case DType::bf16:
      return softcap_rows<bf16>(a, begin, end);
    case DType::f16:
      return softcap_rows<f16>(a, begin, end);
  }
}

}  // namespace llmcli::cpu::LLMCLI_ISA
