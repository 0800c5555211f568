// llmcli::norm, add_norm and norm_backward on CPU tensors.
#include "norm.h"

#include "operators_cpu.h"

namespace llmcli {
namespace {

void on_threads(const cpu::NormArgs& a, int64_t rows) {
  const auto kernel = cpu::active().norm;
  parallel(rows, static_cast<double>(a.size) * 0.25,
           [&](int64_t begin, int64_t end) { kernel(a, begin, end); });
}

Tensor norm(const Tensor& x, const Tensor& weight, std::optional<Tensor> bias, double eps, bool rms) {
  const Tensor y = empty_cpu(x.sizes(), x.scalar_type());
  norm_into(x, nullptr, weight, bias, eps, rms, y, nullptr, on_threads);
  return y;
}

}  // namespace

// → (norm of x + residual, x + residual).
std::tuple<Tensor, Tensor> add_norm(const Tensor& x, const Tensor& residual, const Tensor& weight,
                                    std::optional<Tensor> bias, double eps, bool rms) {
  const Tensor y = empty_cpu(x.sizes(), x.scalar_type()), total = empty_cpu(x.sizes(), x.scalar_type());
  norm_into(x, &residual, weight, bias, eps, rms, y, &total, on_threads);
  return {y, total};
}

// → (dx + extra, dweight, dbias); dbias is empty without a bias.
std::tuple<Tensor, Tensor, Tensor> norm_backward(const Tensor& grad, const Tensor& x, const Tensor& weight,
                                                 std::optional<Tensor> extra, bool has_bias, double eps,
                                                 bool rms) {
  const NormPartials sums(x, weight, rms);
  const Tensor dx = empty_cpu(x.sizes(), x.scalar_type());
  const std::unique_ptr<float[]> partial(new float[static_cast<size_t>(sums.blocks * sums.width)]);
  norm_backward_into(
      grad, x, weight, extra, has_bias, eps, rms, dx, partial.get(), [&](const cpu::NormBackwardArgs& a) {
        const auto kernel = cpu::active().norm_backward;
        parallel(sums.blocks,
                 static_cast<double>(a.size * (a.rows < cpu::kRowBlock ? a.rows : cpu::kRowBlock)) * 0.4,
                 [&](int64_t begin, int64_t end) { kernel(a, begin, end); });
      });
  const ScalarType dtype = weight.scalar_type();
  const int64_t size = weight.numel();
  return {
      dx, column_sum(partial.get(), sums.blocks, sums.width, size, dtype),
      has_bias ? column_sum(partial.get() + size, sums.blocks, sums.width, size, dtype) : no_gradient(dtype)};
}

}  // namespace llmcli

STABLE_TORCH_LIBRARY_IMPL(llmcli, CPU, m) {
  m.impl("norm", TORCH_BOX(&llmcli::norm));
  m.impl("add_norm", TORCH_BOX(&llmcli::add_norm));
  m.impl("norm_backward", TORCH_BOX(&llmcli::norm_backward));
}
