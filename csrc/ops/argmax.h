// What the bindings of argmax share: checks, and the argument struct.
#pragma once
#include <tuple>

#include "rows.h"

namespace llmcli {

inline torch::headeronly::IntHeaderOnlyArrayRef argmax_sizes(const Tensor& x) {
  STD_TORCH_CHECK(x.dim() >= 1 && x.size(x.dim() - 1) > 0, "argmax: expected rows of at least one number");
  return {x.sizes().data(), static_cast<size_t>(x.dim() - 1)};
}

// x (..., V) → where the highest of each row first stands, and itself in float32: (...), contiguous.
// run(args, rows) does it.
template <class Run>
void argmax_into(const Tensor& x, const Tensor& index, const Tensor& highest, const Run& run) {
  const RowTensor x_rows(x);
  cpu::ArgmaxArgs a{};
  a.x = x_rows.data();
  a.x_rows = x_rows.layout();
  a.index = static_cast<int64_t*>(index.mutable_data_ptr());
  a.highest = static_cast<float*>(highest.mutable_data_ptr());
  a.size = x.size(x.dim() - 1);
  a.dtype = dtype_of(x, "argmax");
  if (row_count(x) > 0) run(a, row_count(x));
}

}  // namespace llmcli
