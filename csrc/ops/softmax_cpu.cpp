// llmcli::softmax, softmax_out and softmax_backward on CPU tensors.
#include "rows.h"

namespace llmcli {
namespace {

// x, mask and out (..., V): mask bool or of x's dtype, expanded to x's shape by strides.
void softmax_into(const Tensor& x, const std::optional<Tensor>& mask, double scale, bool log,
                  const Tensor& out) {
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
  const auto kernel = cpu::active().softmax;
  parallel(rows, static_cast<double>(a.size) * 0.25,
           [&](int64_t begin, int64_t end) { kernel(a, begin, end, scratch_row(a.size)); });
}

void softmax_out(const Tensor& x, std::optional<Tensor> mask, double scale, bool log, Tensor out) {
  softmax_into(x, mask, scale, log, out);
}

Tensor softmax(const Tensor& x, std::optional<Tensor> mask, double scale, bool log) {
  const Tensor out = empty_cpu(x.sizes(), x.scalar_type());
  softmax_into(x, mask, scale, log, out);
  return out;
}

Tensor softmax_backward(const Tensor& grad, const Tensor& y, double scale, bool log) {
  STD_TORCH_CHECK(grad.sizes() == y.sizes() && grad.scalar_type() == y.scalar_type() && y.dim() >= 1,
                  "softmax_backward: grad and y differ in shape or dtype");
  const Tensor dx = empty_cpu(y.sizes(), y.scalar_type());
  const int64_t rows = row_count(y);
  if (rows == 0) return dx;
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
  const auto kernel = cpu::active().softmax_backward;
  parallel(rows, static_cast<double>(a.size) * 0.2,
           [&](int64_t begin, int64_t end) { kernel(a, begin, end); });
  return dx;
}

}  // namespace
}  // namespace llmcli

STABLE_TORCH_LIBRARY_IMPL(llmcli, CPU, m) {
  m.impl("softmax", TORCH_BOX(&llmcli::softmax));
  m.impl("softmax_out", TORCH_BOX(&llmcli::softmax_out));
  m.impl("softmax_backward", TORCH_BOX(&llmcli::softmax_backward));
}
