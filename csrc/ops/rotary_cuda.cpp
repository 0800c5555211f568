// llmcli::rotary on CUDA tensors.
#include "cuda.h"
#include "rotary.h"

namespace llmcli {
namespace {

Tensor rotary(const Tensor& x, const Tensor& cos, const Tensor& sin) {
  const Tensor y = torch::stable::new_empty(x, x.sizes());
  rotary_into(x, cos, sin, y, [&](const cpu::RotaryArgs& a, int64_t positions) {
    on_device_of(x, "rotary", [&](cudaStream_t stream) { return cuda::rotary(a, positions, stream); });
  });
  return y;
}

}  // namespace
}  // namespace llmcli

STABLE_TORCH_LIBRARY_IMPL(llmcli, CUDA, m) { m.impl("rotary", TORCH_BOX(&llmcli::rotary)); }
