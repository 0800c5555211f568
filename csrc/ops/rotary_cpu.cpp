// llmcli::rotary on CPU tensors.
#include "rows.h"

namespace llmcli {
namespace {

// x (B,T,H,D), cos and sin (1 or B,T,R/2) float32, R <= D → (B,T,H,D).
Tensor rotary(const Tensor& x, const Tensor& cos, const Tensor& sin) {
  STD_TORCH_CHECK(x.dim() == 4 && cos.dim() == 3 && cos.sizes() == sin.sizes() && cos.size(1) == x.size(1) &&
                      (cos.size(0) == 1 || cos.size(0) == x.size(0)) && 2 * cos.size(2) <= x.size(3) &&
                      cos.scalar_type() == ScalarType::Float && sin.scalar_type() == ScalarType::Float &&
                      cos.is_contiguous() && sin.is_contiguous(),
                  "rotary: expected x (B,T,H,D), cos and sin (1 or B,T,R/2), contiguous float32, R <= D");
  const Tensor y = empty_cpu(x.sizes(), x.scalar_type());
  const Tensor dense = x.size(3) > 1 && x.stride(3) != 1 ? torch::stable::contiguous(x) : x;
  cpu::RotaryArgs a{};
  a.x = dense.const_data_ptr();
  a.y = y.mutable_data_ptr();
  a.cos = static_cast<const float*>(cos.const_data_ptr());
  a.sin = static_cast<const float*>(sin.const_data_ptr());
  a.T = x.size(1), a.H = x.size(2), a.D = x.size(3), a.half = cos.size(2);
  a.x_b = dense.stride(0), a.x_t = dense.stride(1), a.x_h = dense.stride(2);
  a.angle_b = cos.size(0) == 1 ? 0 : a.T * a.half;
  a.angle_t = a.half;
  a.dtype = dtype_of(x, "rotary");
  const auto kernel = cpu::active().rotary;
  parallel(x.numel() == 0 ? 0 : x.size(0) * a.T, static_cast<double>(a.H * a.D) * 0.2,
           [&](int64_t begin, int64_t end) { kernel(a, begin, end); });
  return y;
}

}  // namespace
}  // namespace llmcli

STABLE_TORCH_LIBRARY_IMPL(llmcli, CPU, m) { m.impl("rotary", TORCH_BOX(&llmcli::rotary)); }
