// llmcli::norm, add_norm and norm_backward on CUDA tensors.
#include "norm.h"

#include "cuda.h"

namespace llmcli {
namespace {

void on_device(const Tensor& x, const Tensor* residual, const Tensor& weight,
               const std::optional<Tensor>& bias, double eps, bool rms, const Tensor& y,
               const Tensor* total) {
  norm_into(x, residual, weight, bias, eps, rms, y, total, [&](const cpu::NormArgs& a, int64_t rows) {
    on_device_of(x, "norm", [&](cudaStream_t stream) { return cuda::norm(a, rows, stream); });
  });
}

Tensor norm(const Tensor& x, const Tensor& weight, std::optional<Tensor> bias, double eps, bool rms) {
  const Tensor y = torch::stable::new_empty(x, x.sizes());
  on_device(x, nullptr, weight, bias, eps, rms, y, nullptr);
  return y;
}

// → (norm of x + residual, x + residual).
std::tuple<Tensor, Tensor> add_norm(const Tensor& x, const Tensor& residual, const Tensor& weight,
                                    std::optional<Tensor> bias, double eps, bool rms) {
  const Tensor y = torch::stable::new_empty(x, x.sizes()), total = torch::stable::new_empty(x, x.sizes());
  on_device(x, &residual, weight, bias, eps, rms, y, &total);
  return {y, total};
}

// → (dx + extra, dweight, dbias); dbias is empty without a bias.
std::tuple<Tensor, Tensor, Tensor> norm_backward(const Tensor& grad, const Tensor& x, const Tensor& weight,
                                                 std::optional<Tensor> extra, bool has_bias, double eps,
                                                 bool rms) {
  const NormPartials sums(x, weight, rms);
  const Tensor dx = torch::stable::new_empty(x, x.sizes());
  const Tensor partial = torch::stable::new_empty(x, {sums.blocks * sums.width}, ScalarType::Float);
  norm_backward_into(grad, x, weight, extra, has_bias, eps, rms, dx,
                     static_cast<float*>(partial.mutable_data_ptr()), [&](const cpu::NormBackwardArgs& a) {
                       on_device_of(x, "norm_backward",
                                    [&](cudaStream_t stream) { return cuda::norm_backward(a, stream); });
                     });
  const ScalarType dtype = weight.scalar_type();
  const int64_t size = weight.numel();
  return {dx, column_sum_on_device(partial, 0, sums.blocks, sums.width, size, dtype),
          column_sum_on_device(partial, size, sums.blocks, sums.width, has_bias ? size : 0, dtype)};
}

}  // namespace
}  // namespace llmcli

STABLE_TORCH_LIBRARY_IMPL(llmcli, CUDA, m) {
  m.impl("norm", TORCH_BOX(&llmcli::norm));
  m.impl("add_norm", TORCH_BOX(&llmcli::add_norm));
  m.impl("norm_backward", TORCH_BOX(&llmcli::norm_backward));
}
