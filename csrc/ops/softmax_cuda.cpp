// llmcli::softmax, softmax_out and softmax_backward on CUDA tensors.
#include "cuda.h"
#include "softmax.h"

namespace llmcli {
namespace {

void softmax_out(const Tensor& x, std::optional<Tensor> mask, double scale, bool log, Tensor out) {
  softmax_into(x, mask, scale, log, out, [&](const cpu::SoftmaxArgs& a, int64_t rows) {
    on_device_of(x, "softmax", [&](cudaStream_t stream) { return cuda::softmax(a, rows, stream); });
  });
}

Tensor softmax(const Tensor& x, std::optional<Tensor> mask, double scale, bool log) {
  const Tensor out = torch::stable::new_empty(x, x.sizes());
  softmax_out(x, mask, scale, log, out);
  return out;
}

Tensor softmax_backward(const Tensor& grad, const Tensor& y, double scale, bool log) {
  const Tensor dx = torch::stable::new_empty(y, y.sizes());
  softmax_backward_into(grad, y, scale, log, dx, [&](const cpu::SoftmaxBackwardArgs& a, int64_t rows) {
    on_device_of(y, "softmax_backward",
                 [&](cudaStream_t stream) { return cuda::softmax_backward(a, rows, stream); });
  });
  return dx;
}

}  // namespace
}  // namespace llmcli

STABLE_TORCH_LIBRARY_IMPL(llmcli, CUDA, m) {
  m.impl("softmax", TORCH_BOX(&llmcli::softmax));
  m.impl("softmax_out", TORCH_BOX(&llmcli::softmax_out));
  m.impl("softmax_backward", TORCH_BOX(&llmcli::softmax_backward));
}
