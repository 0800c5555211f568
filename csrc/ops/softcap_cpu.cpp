// llmcli::softcap and its backward on CPU tensors.
#include "softcap.h"

namespace llmcli {
namespace {

Tensor capped(const Tensor& x, const Tensor* grad, double cap) {
  const Tensor y = empty_cpu(x.sizes(), x.scalar_type());
  softcap_into(x, grad, cap, y, [](const cpu::SoftcapArgs& a, int64_t rows) {
    const auto kernel = cpu::active().softcap;
    parallel(rows, static_cast<double>(a.size) * 0.4,
             [&](int64_t begin, int64_t end) { kernel(a, begin, end); });
  });
  return y;
}

Tensor softcap(const Tensor& x, double cap) { return capped(x, nullptr, cap); }
Tensor softcap_backward(const Tensor& grad, const Tensor& x, double cap) { return capped(x, &grad, cap); }

}  // namespace
}  // namespace llmcli

STABLE_TORCH_LIBRARY_IMPL(llmcli, CPU, m) {
  m.impl("softcap", TORCH_BOX(&llmcli::softcap));
  m.impl("softcap_backward", TORCH_BOX(&llmcli::softcap_backward));
}
