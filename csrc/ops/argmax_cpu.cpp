// llmcli::argmax on CPU tensors.
#include "argmax.h"

namespace llmcli {
namespace {

std::tuple<Tensor, Tensor> argmax(const Tensor& x) {
  const auto sizes = argmax_sizes(x);
  const Tensor index = empty_cpu(sizes, ScalarType::Long), highest = empty_cpu(sizes, ScalarType::Float);
  argmax_into(x, index, highest, [](const cpu::ArgmaxArgs& a, int64_t rows) {
    const auto kernel = cpu::active().argmax;
    parallel(rows, static_cast<double>(a.size) * 0.05,
             [&](int64_t begin, int64_t end) { kernel(a, begin, end); });
  });
  return {index, highest};
}

}  // namespace
}  // namespace llmcli

STABLE_TORCH_LIBRARY_IMPL(llmcli, CPU, m) { m.impl("argmax", TORCH_BOX(&llmcli::argmax)); }
