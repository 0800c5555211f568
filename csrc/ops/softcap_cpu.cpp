// llmcli::softcap and its backward on CPU tensors.
#include "rows.h"

namespace llmcli {
namespace {

Tensor capped(const Tensor& x_, const Tensor* grad_, double cap) {
  STD_TORCH_CHECK(x_.dim() >= 1 && cap > 0, "softcap: expected rows and a cap above 0");
  const Tensor x = torch::stable::contiguous(x_);
  const Tensor grad = grad_ ? torch::stable::contiguous(*grad_) : x;
  STD_TORCH_CHECK(grad.sizes() == x.sizes() && grad.scalar_type() == x.scalar_type(),
                  "softcap: grad differs from x in shape or dtype");
  const Tensor y = empty_cpu(x.sizes(), x.scalar_type());
  cpu::SoftcapArgs a{};
  a.x = x.const_data_ptr();
  a.grad = grad_ ? grad.const_data_ptr() : nullptr;
  a.y = y.mutable_data_ptr();
  a.size = x.size(x.dim() - 1);
  a.cap = static_cast<float>(cap);
  a.dtype = dtype_of(x, "softcap");
  const auto kernel = cpu::active().softcap;
  parallel(row_count(x), static_cast<double>(a.size) * 0.4,
           [&](int64_t begin, int64_t end) { kernel(a, begin, end); });
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
