// What the bindings of rotary positions share: checks, and the argument struct.
#pragma once
#include "binding.h"

namespace llmcli {

// x (B,T,H,D), cos and sin (1 or B,T,R/2) float32, R <= D, y (B,T,H,D) contiguous. run(args, B * T) does it.
template <class Run>
void rotary_into(const Tensor& x, const Tensor& cos, const Tensor& sin, const Tensor& y, const Run& run) {
  STD_TORCH_CHECK(x.dim() == 4 && cos.dim() == 3 && cos.sizes() == sin.sizes() && cos.size(1) == x.size(1) &&
                      (cos.size(0) == 1 || cos.size(0) == x.size(0)) && 2 * cos.size(2) <= x.size(3) &&
                      cos.scalar_type() == ScalarType::Float && sin.scalar_type() == ScalarType::Float &&
                      cos.is_contiguous() && sin.is_contiguous(),
                  "rotary: expected x (B,T,H,D), cos and sin (1 or B,T,R/2), contiguous float32, R <= D");
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
  if (x.numel() > 0) run(a, x.size(0) * a.T);
}

}  // namespace llmcli
