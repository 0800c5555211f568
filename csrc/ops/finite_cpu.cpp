// llmcli::finite on CPU tensors.
#include "rows.h"

namespace llmcli {
namespace {

// Whether all of x is finite, bool ().
Tensor finite(const Tensor& x_) {
  const Tensor x = torch::stable::contiguous(x_);
  cpu::FiniteArgs a{};
  a.x = x.const_data_ptr();
  a.size = x.numel();
  a.dtype = dtype_of(x, "finite");
  std::atomic<bool> all{true};
  const auto kernel = cpu::active().finite;
  parallel((a.size + cpu::kFiniteItem - 1) / cpu::kFiniteItem, static_cast<double>(cpu::kFiniteItem) * 0.05,
           [&](int64_t begin, int64_t end) {
             if (!kernel(a, begin, end)) all = false;
           },
           kOpening);
  const Tensor result = torch::stable::new_empty(x, {}, ScalarType::Bool);
  *static_cast<bool*>(result.mutable_data_ptr()) = all;
  return result;
}

}  // namespace
}  // namespace llmcli

STABLE_TORCH_LIBRARY_IMPL(llmcli, CPU, m) { m.impl("finite", TORCH_BOX(&llmcli::finite)); }
