// Sums over rows: the last step of the gradients of weights and biases.
#pragma once
#include "vec_loop.h"

namespace llmcli::cpu::LLMCLI_ISA {

template <typename T>
void column_sum_groups(const ColumnSumArgs& a, int64_t begin, int64_t end) {
  const int64_t last = end * kColumnGroup < a.columns ? end * kColumnGroup : a.columns;
  for (int64_t c = begin * kColumnGroup; c < last; c += N) {
    const int64_t n = last - c;
    F sum = zero();
    for (int64_t r = 0; r < a.rows; ++r) sum = add(sum, load_up_to(a.x + r * a.stride + c, n));
    store_up_to(static_cast<T*>(a.y) + c, sum, n);
  }
}

void column_sum(const ColumnSumArgs& a, int64_t begin, int64_t end) {
  switch (a.dtype) {
    case DType::f32:
      return column_sum_groups<float>(a, begin, end);
    case DType::bf16:
      return column_sum_groups<bf16>(a, begin, end);
    case DType::f16:
      return column_sum_groups<f16>(a, begin, end);
  }
}

}  // namespace llmcli::cpu::LLMCLI_ISA
