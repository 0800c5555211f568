// llmcli::rotary on CPU tensors.
#include "rotary.h"

#include "rows.h"

namespace llmcli {
namespace {

Tensor rotary(const Tensor& x, const Tensor& cos, const Tensor& sin) {
  const Tensor y = empty_cpu(x.sizes(), x.scalar_type());
  rotary_into(x, cos, sin, y, [](const cpu::RotaryArgs& a, int64_t positions) {
    const auto kernel = cpu::active().rotary;
    parallel(positions, static_cast<double>(a.H * a.D) * 0.2,
             [&](int64_t begin, int64_t end) { kernel(a, begin, end); });
  });
  return y;
}

}  // namespace
}  // namespace llmcli

STABLE_TORCH_LIBRARY_IMPL(llmcli, CPU, m) { m.impl("rotary", TORCH_BOX(&llmcli::rotary)); }
