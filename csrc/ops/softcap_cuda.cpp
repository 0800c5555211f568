// llmcli::softcap and its backward on CUDA tensors.
#include "softcap.h"

#include "cuda.h"

namespace llmcli {
namespace {

Tensor capped(const Tensor& x, const Tensor* grad, double cap) {
  const Tensor y = torch::stable::new_empty(x, x.sizes());
  softcap_into(x, grad, cap, y, [&](const cpu::SoftcapArgs& a, int64_t rows) {
    on_device_of(x, "softcap", [&](cudaStream_t stream) { return cuda::softcap(a, rows, stream); });
  });
  return y;
}

Tensor softcap(const Tensor& x, double cap) { return capped(x, nullptr, cap); }
Tensor softcap_backward(const Tensor& grad, const Tensor& x, double cap) { return capped(x, &grad, cap); }

}  // namespace
}  // namespace llmcli

STABLE_TORCH_LIBRARY_IMPL(llmcli, CUDA, m) {
  m.impl("softcap", TORCH_BOX(&llmcli::softcap));
  m.impl("softcap_backward", TORCH_BOX(&llmcli::softcap_backward));
}
