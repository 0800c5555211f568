// llmcli::softmax, softmax_out and softmax_backward on CPU tensors.
#include "softmax.h"

namespace llmcli {
namespace {

void on_threads(const cpu::SoftmaxArgs& a, int64_t rows) {
  const auto kernel = cpu::active().softmax;
  parallel(rows, static_cast<double>(a.size) * 0.25,
           [&](int64_t begin, int64_t end) { kernel(a, begin, end, scratch_row(a.size)); });
}

void softmax_out(const Tensor& x, std::optional<Tensor> mask, double scale, bool log, Tensor out) {
  softmax_into(x, mask, scale, log, out, on_threads);
}

Tensor softmax(const Tensor& x, std::optional<Tensor> mask, double scale, bool log) {
  const Tensor out = empty_cpu(x.sizes(), x.scalar_type());
  softmax_into(x, mask, scale, log, out, on_threads);
  return out;
}

Tensor softmax_backward(const Tensor& grad, const Tensor& y, double scale, bool log) {
  const Tensor dx = empty_cpu(y.sizes(), y.scalar_type());
  softmax_backward_into(grad, y, scale, log, dx, [](const cpu::SoftmaxBackwardArgs& a, int64_t rows) {
    const auto kernel = cpu::active().softmax_backward;
    parallel(rows, static_cast<double>(a.size) * 0.2,
             [&](int64_t begin, int64_t end) { kernel(a, begin, end); });
  });
  return dx;
}

}  // namespace
}  // namespace llmcli

STABLE_TORCH_LIBRARY_IMPL(llmcli, CPU, m) {
  m.impl("softmax", TORCH_BOX(&llmcli::softmax));
  m.impl("softmax_out", TORCH_BOX(&llmcli::softmax_out));
  m.impl("softmax_backward", TORCH_BOX(&llmcli::softmax_backward));
}
