// llmcli::argmax on CUDA tensors.
#include "argmax.h"

#include "cuda.h"

namespace llmcli {
namespace {

std::tuple<Tensor, Tensor> argmax(const Tensor& x) {
  const auto sizes = argmax_sizes(x);
  const Tensor index = torch::stable::new_empty(x, sizes, ScalarType::Long),
               highest = torch::stable::new_empty(x, sizes, ScalarType::Float);
  argmax_into(x, index, highest, [&](const cpu::ArgmaxArgs& a, int64_t rows) {
    on_device_of(x, "argmax", [&](cudaStream_t stream) { return cuda::argmax(a, rows, stream); });
  });
  return {index, highest};
}

}  // namespace
}  // namespace llmcli

STABLE_TORCH_LIBRARY_IMPL(llmcli, CUDA, m) { m.impl("argmax", TORCH_BOX(&llmcli::argmax)); }
