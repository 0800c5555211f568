// What the bindings of softcap share: checks, and the argument struct.
#pragma once
#include "rows.h"

namespace llmcli {

// cap * tanh(x / cap), or with grad the gradient of x, into y like x and contiguous. run(args, rows) does it.
template <class Run>
void softcap_into(const Tensor& x_, const Tensor* grad_, double cap, const Tensor& y, const Run& run) {
  STD_TORCH_CHECK(x_.dim() >= 1 && cap > 0, "softcap: expected rows and a cap above 0");
  const Tensor x = torch::stable::contiguous(x_);
  const Tensor grad = grad_ ? torch::stable::contiguous(*grad_) : x;
  STD_TORCH_CHECK(grad.sizes() == x.sizes() && grad.scalar_type() == x.scalar_type(),
                  "softcap: grad differs from x in shape or dtype");
  cpu::SoftcapArgs a{};
  a.x = x.const_data_ptr();
  a.grad = grad_ ? grad.const_data_ptr() : nullptr;
  a.y = y.mutable_data_ptr();
  a.size = x.size(x.dim() - 1);
  a.cap = static_cast<float>(cap);
  a.dtype = dtype_of(x, "softcap");
  if (row_count(x) > 0) run(a, row_count(x));
}

}  // namespace llmcli
