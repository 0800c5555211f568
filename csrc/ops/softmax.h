// What the bindings of softmax share: checks, and the argument structs.
#pragma once
#include <optional>

#include "rows.h"

namespace llmcli {

// x, mask and out (..., V): mask bool or of x's dtype, expanded to x's shape by strides. run(args, rows) does
// it.
template <class Run>
void softmax_into(const Tensor& x, const std::optional<Tensor>& mask, double scale, bool log,
                  const Tensor& out, const Run& run) {
  STD_TORCH_CHECK(x.dim() >= 1, "softmax: expected at least one dimension");
  STD_TORCH_CHECK(x.sizes() == out.sizes() && x.scalar_type() == out.scalar_type(),
                  "softmax: x and out differ in shape or dtype");
  cpu::SoftmaxArgs a{};
  a.size = x.size(x.dim() - 1);
  a.scale = static_cast<float>(scale);
  a.dtype = dtype_of(x, "softmax");
  a.log = log;
  const int64_t rows = row_count(x);
  if (rows == 0) return;
  const RowTensor x_rows(x);
  a.x = x_rows.data();
  a.x_rows = x_rows.layout();
  STD_TORCH_CHECK(row_layout(out, &a.y_rows), "softmax: expected out with contiguous rows");
  a.y = out.mutable_data_ptr();
  std::optional<RowTensor> mask_rows;
  if (mask) {
    STD_TORCH_CHECK(mask->sizes() == x.sizes(), "softmax: mask and x differ in shape");
    a.mask_is_bool = mask->scalar_type() == ScalarType::Bool;
    STD_TORCH_CHECK(a.mask_is_bool || mask->scalar_type() == x.scalar_type(),
                    "softmax: expected mask of bool or of x's dtype");
    mask_rows.emplace(*mask);
    a.mask = mask_rows->data();
    a.mask_rows = mask_rows->layout();
  }
  run(a, rows);
}

// grad and y of one shape, dx (..., V) contiguous.
template <class Run>
void softmax_backward_into(const Tensor& grad, const Tensor& y, double scale, bool log, const Tensor& dx,
                           const Run& run) {
  STD_TORCH_CHECK(grad.sizes() == y.sizes() && grad.scalar_type() == y.scalar_type() && y.dim() >= 1,
                  "softmax_backward: grad and y differ in shape or dtype");
  const int64_t rows = row_count(y);
  if (rows == 0) return;
  const RowTensor grad_rows(grad);
  const Tensor output = y.is_contiguous() ? y : torch::stable::contiguous(y);
  cpu::SoftmaxBackwardArgs a{};
  a.grad = grad_rows.data();
  a.grad_rows = grad_rows.layout();
  a.y = output.const_data_ptr();
  a.dx = dx.mutable_data_ptr();
  a.size = y.size(y.dim() - 1);
  a.scale = static_cast<float>(scale);
  a.dtype = dtype_of(y, "softmax_backward");
  a.log = log;
  run(a, rows);
}

}  // namespace llmcli
