// llmcli::norm, add_norm and norm_backward on CPU tensors.
#include <tuple>

#include "rows.h"

namespace llmcli {
namespace {

// weight and bias (C,), both contiguous and of one dtype: float32 (true) or x's.
bool check_weights(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias) {
  STD_TORCH_CHECK(x.dim() >= 1 && weight.numel() == x.size(x.dim() - 1) && weight.is_contiguous(),
                  "norm: expected x (..., C) and a contiguous weight (C,)");
  STD_TORCH_CHECK(weight.scalar_type() == x.scalar_type() || weight.scalar_type() == ScalarType::Float,
                  "norm: expected weight of float32 or of x's dtype");
  STD_TORCH_CHECK(!bias || (bias->numel() == weight.numel() && bias->is_contiguous() &&
                            bias->scalar_type() == weight.scalar_type()),
                  "norm: expected a contiguous bias like weight");
  return weight.scalar_type() == ScalarType::Float;
}

void norm_into(const Tensor& x, const Tensor* residual, const Tensor& weight,
               const std::optional<Tensor>& bias, double eps, bool rms, const Tensor& y,
               const Tensor* total) {
  cpu::NormArgs a{};
  a.wide_weight = check_weights(x, weight, bias);
  a.dtype = dtype_of(x, "norm");
  a.size = weight.numel();
  a.eps = static_cast<float>(eps);
  a.rms = rms;
  const int64_t rows = row_count(x);
  if (rows == 0) return;
  const RowTensor x_rows(x);
  a.x = x_rows.data();
  a.x_rows = x_rows.layout();
  std::optional<RowTensor> residual_rows;
  if (residual) {
    residual_rows.emplace(*residual);
    a.residual = residual_rows->data();
    a.residual_rows = residual_rows->layout();
    a.total = total->mutable_data_ptr();
  }
  a.weight = weight.const_data_ptr();
  a.bias = bias ? bias->const_data_ptr() : nullptr;
  a.y = y.mutable_data_ptr();
  const auto kernel = cpu::active().norm;
  parallel(rows, static_cast<double>(a.size) * 0.25,
           [&](int64_t begin, int64_t end) { kernel(a, begin, end); });
}

Tensor norm(const Tensor& x, const Tensor& weight, std::optional<Tensor> bias, double eps, bool rms) {
  const Tensor y = empty_cpu(x.sizes(), x.scalar_type());
  norm_into(x, nullptr, weight, bias, eps, rms, y, nullptr);
  return y;
}

// → (norm of x + residual, x + residual).
std::tuple<Tensor, Tensor> add_norm(const Tensor& x, const Tensor& residual, const Tensor& weight,
                                    std::optional<Tensor> bias, double eps, bool rms) {
  STD_TORCH_CHECK(x.sizes() == residual.sizes() && x.scalar_type() == residual.scalar_type(),
                  "norm: x and residual differ in shape or dtype");
  const Tensor y = empty_cpu(x.sizes(), x.scalar_type()), total = empty_cpu(x.sizes(), x.scalar_type());
  norm_into(x, &residual, weight, bias, eps, rms, y, &total);
  return {y, total};
}

// → (dx + extra, dweight, dbias); dbias is empty without a bias.
std::tuple<Tensor, Tensor, Tensor> norm_backward(const Tensor& grad, const Tensor& x, const Tensor& weight,
                                                 std::optional<Tensor> extra, bool has_bias, double eps,
                                                 bool rms) {
  cpu::NormBackwardArgs a{};
  a.wide_weight = check_weights(x, weight, std::nullopt);
  a.dtype = dtype_of(x, "norm_backward");
  const auto like_x = [&](const Tensor& t) {
    return t.sizes() == x.sizes() && t.scalar_type() == x.scalar_type();
  };
  STD_TORCH_CHECK(like_x(grad) && (!extra || like_x(*extra)),
                  "norm_backward: grad and x differ in shape or dtype");
  STD_TORCH_CHECK(!(rms && has_bias), "norm_backward: RMS norm has no bias");
  a.size = weight.numel();
  a.rows = row_count(x);
  a.eps = static_cast<float>(eps);
  a.rms = rms;
  const Tensor dx = empty_cpu(x.sizes(), x.scalar_type());
  const int64_t width = (rms ? 1 : 2) * a.size, blocks = blocks_of(a.rows);
  const std::unique_ptr<float[]> partial(new float[static_cast<size_t>(blocks * width)]);
  if (blocks > 0) {
    const RowTensor grad_rows(grad), x_rows(x);
    std::optional<RowTensor> extra_rows;
    a.grad = grad_rows.data();
    a.grad_rows = grad_rows.layout();
    a.x = x_rows.data();
    a.x_rows = x_rows.layout();
    if (extra) {
      extra_rows.emplace(*extra);
      a.extra = extra_rows->data();
      a.extra_rows = extra_rows->layout();
    }
    a.weight = weight.const_data_ptr();
    a.dx = dx.mutable_data_ptr();
    a.partial = partial.get();
    const auto kernel = cpu::active().norm_backward;
    parallel(blocks, static_cast<double>(a.size * (a.rows < cpu::kRowBlock ? a.rows : cpu::kRowBlock)) * 0.4,
             [&](int64_t begin, int64_t end) { kernel(a, begin, end); });
  }
  const ScalarType dtype = weight.scalar_type();
  return {dx, column_sum(partial.get(), blocks, width, a.size, dtype),
          has_bias ? column_sum(partial.get() + a.size, blocks, width, a.size, dtype) : no_gradient(dtype)};
}

}  // namespace
}  // namespace llmcli

STABLE_TORCH_LIBRARY_IMPL(llmcli, CPU, m) {
  m.impl("norm", TORCH_BOX(&llmcli::norm));
  m.impl("add_norm", TORCH_BOX(&llmcli::add_norm));
  m.impl("norm_backward", TORCH_BOX(&llmcli::norm_backward));
}
