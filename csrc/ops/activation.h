// What the bindings of activations share: checks, and the argument structs.
#pragma once
#include <optional>
#include <tuple>

#include "rows.h"

namespace llmcli {

// bias (C,), contiguous, float32 (true) or of x's dtype.
inline bool check_activation_bias(const Tensor& x, const Tensor& bias) {
  STD_TORCH_CHECK(bias.numel() == x.size(x.dim() - 1) && bias.is_contiguous() &&
                      (bias.scalar_type() == x.scalar_type() || bias.scalar_type() == ScalarType::Float),
                  "activation: expected a contiguous bias (C,) of float32 or of x's dtype");
  return bias.scalar_type() == ScalarType::Float;
}

inline void check_alike(const Tensor& x, const Tensor& other) {
  STD_TORCH_CHECK(x.dim() >= 1 && x.sizes() == other.sizes() && x.scalar_type() == other.scalar_type(),
                  "activation: inputs differ in shape or dtype");
}

// GELU of x + bias into y, or with grad the gradient of x; y contiguous, partial as GeluArgs tells.
struct GeluInputs {
  RowTensor x;
  std::optional<RowTensor> grad;
  cpu::GeluArgs args{};

  GeluInputs(const Tensor& x_, const std::optional<Tensor>& bias, const Tensor* grad_, bool tanh) : x(x_) {
    check_alike(x_, grad_ ? *grad_ : x_);
    args.dtype = dtype_of(x_, "gelu");
    args.tanh = tanh;
    if (bias) {
      args.wide_bias = check_activation_bias(x_, *bias);
      args.bias = bias->const_data_ptr();
    }
    args.size = x_.size(x_.dim() - 1);
    args.rows = row_count(x_);
    args.x = x.data();
    args.x_rows = x.layout();
    if (!grad_) return;
    grad.emplace(*grad_);
    args.grad = grad->data();
    args.grad_rows = grad->layout();
  }
};

// silu(gate + gate_bias) * (up + up_bias) into y, or with grad the gradients of gate and up into y and dup.
struct SiluGateInputs {
  RowTensor gate, up;
  std::optional<RowTensor> grad;
  cpu::SiluGateArgs args{};

  SiluGateInputs(const Tensor& g, const Tensor& u, const std::optional<Tensor>& gate_bias,
                 const std::optional<Tensor>& up_bias, const Tensor* grad_)
      : gate(g), up(u) {
    check_alike(g, u);
    check_alike(g, grad_ ? *grad_ : g);
    STD_TORCH_CHECK(gate_bias.has_value() == up_bias.has_value(), "silu_gate: expected both biases or none");
    args.dtype = dtype_of(g, "silu_gate");
    if (gate_bias) {
      args.wide_bias = check_activation_bias(g, *gate_bias);
      STD_TORCH_CHECK(check_activation_bias(u, *up_bias) == args.wide_bias,
                      "silu_gate: biases differ in dtype");
      args.gate_bias = gate_bias->const_data_ptr();
      args.up_bias = up_bias->const_data_ptr();
    }
    args.size = g.size(g.dim() - 1);
    args.rows = row_count(g);
    args.gate = gate.data();
    args.gate_rows = gate.layout();
    args.up = up.data();
    args.up_rows = up.layout();
    if (!grad_) return;
    grad.emplace(*grad_);
    args.grad = grad->data();
    args.grad_rows = grad->layout();
  }
};

}  // namespace llmcli
