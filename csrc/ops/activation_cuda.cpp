// llmcli::gelu, silu_gate and their backward on CUDA tensors.
#include "activation.h"

#include "cuda.h"

namespace llmcli {
namespace {

void on_device(const Tensor& x, const cpu::GeluArgs& a) {
  if (a.rows == 0) return;
  on_device_of(x, "gelu", [&](cudaStream_t stream) { return cuda::activation(a, stream); });
}
void on_device(const Tensor& x, const cpu::SiluGateArgs& a) {
  if (a.rows == 0) return;
  on_device_of(x, "silu_gate", [&](cudaStream_t stream) { return cuda::activation(a, stream); });
}

Tensor gelu(const Tensor& x, std::optional<Tensor> bias, bool tanh) {
  GeluInputs inputs(x, bias, nullptr, tanh);
  const Tensor y = torch::stable::new_empty(x, x.sizes());
  inputs.args.y = y.mutable_data_ptr();
  on_device(x, inputs.args);
  return y;
}

// → (dx, dbias); dbias is empty without a bias.
std::tuple<Tensor, Tensor> gelu_backward(const Tensor& grad, const Tensor& x, std::optional<Tensor> bias,
                                         bool tanh) {
  GeluInputs inputs(x, bias, &grad, tanh);
  const Tensor dx = torch::stable::new_empty(x, x.sizes());
  cpu::GeluArgs& a = inputs.args;
  a.y = dx.mutable_data_ptr();
  const int64_t blocks = bias ? blocks_of(a.rows) : 0;
  const Tensor partial = torch::stable::new_empty(x, {blocks * a.size}, ScalarType::Float);
  a.partial = static_cast<float*>(partial.mutable_data_ptr());
  on_device(x, a);
  return {dx, column_sum_on_device(partial, 0, blocks, a.size, bias ? a.size : 0,
                                   (bias ? *bias : x).scalar_type())};
}

Tensor silu_gate(const Tensor& gate, const Tensor& up, std::optional<Tensor> gate_bias,
                 std::optional<Tensor> up_bias) {
  SiluGateInputs inputs(gate, up, gate_bias, up_bias, nullptr);
  const Tensor y = torch::stable::new_empty(gate, gate.sizes());
  inputs.args.y = y.mutable_data_ptr();
  on_device(gate, inputs.args);
  return y;
}

// → (dgate, dup, dgate_bias, dup_bias); the last two are empty without biases.
std::tuple<Tensor, Tensor, Tensor, Tensor> silu_gate_backward(const Tensor& grad, const Tensor& gate,
                                                              const Tensor& up,
                                                              std::optional<Tensor> gate_bias,
                                                              std::optional<Tensor> up_bias) {
  SiluGateInputs inputs(gate, up, gate_bias, up_bias, &grad);
  const Tensor dgate = torch::stable::new_empty(gate, gate.sizes());
  const Tensor dup = torch::stable::new_empty(gate, gate.sizes());
  cpu::SiluGateArgs& a = inputs.args;
  a.y = dgate.mutable_data_ptr();
  a.dup = dup.mutable_data_ptr();
  const int64_t blocks = gate_bias ? blocks_of(a.rows) : 0, columns = gate_bias ? a.size : 0;
  const Tensor partial = torch::stable::new_empty(gate, {blocks * 2 * a.size}, ScalarType::Float);
  a.partial = static_cast<float*>(partial.mutable_data_ptr());
  on_device(gate, a);
  const ScalarType dtype = (gate_bias ? *gate_bias : gate).scalar_type();
  return {dgate, dup, column_sum_on_device(partial, 0, blocks, 2 * a.size, columns, dtype),
          column_sum_on_device(partial, a.size, blocks, 2 * a.size, columns, dtype)};
}

}  // namespace
}  // namespace llmcli

STABLE_TORCH_LIBRARY_IMPL(llmcli, CUDA, m) {
  m.impl("gelu", TORCH_BOX(&llmcli::gelu));
  m.impl("gelu_backward", TORCH_BOX(&llmcli::gelu_backward));
  m.impl("silu_gate", TORCH_BOX(&llmcli::silu_gate));
  m.impl("silu_gate_backward", TORCH_BOX(&llmcli::silu_gate_backward));
}
