// Whether all numbers of a range are finite, at the speed of memory: 0 * x is 0 for those alone.
#pragma once
#include "vec_loop.h"

namespace llmcli::cpu::LLMCLI_ISA {

template <typename T>
bool finite_range(const FiniteArgs& a, int64_t begin, int64_t end) {
  const T* const x = static_cast<const T*>(a.x) + begin * kFiniteItem;
  const int64_t stop = end * kFiniteItem < a.size ? end * kFiniteItem : a.size;
  return sum_vectors(stop - begin * kFiniteItem, [&](int64_t i, int64_t n) LLMCLI_INLINE_BODY {
           return mul(load_up_to(x + i, n), zero());
         }) == 0.0f;
}

bool finite(const FiniteArgs& a, int64_t begin, int64_t end) {
  switch (a.dtype) {
    case DType::f32:
      return finite_range<float>(a, begin, end);
    case DType::bf16:
      return finite_range<bf16>(a, begin, end);
    default:
      return finite_range<f16>(a, begin, end);
  }
}

}  // namespace llmcli::cpu::LLMCLI_ISA
