// llmcli::gelu, silu_gate and their backward on CPU tensors.
#include "activation.h"

#include "operators_cpu.h"

namespace llmcli {
namespace {

// Items of an elementwise kernel: rows, or blocks of rows where the gradient of a bias is summed.
template <class F>
void over_rows(int64_t rows, int64_t size, bool blocks, double cost, const F& f) {
  const double row = static_cast<double>(size) * cost;
  if (blocks) {
    parallel(blocks_of(rows), row * static_cast<double>(rows < cpu::kRowBlock ? rows : cpu::kRowBlock), f);
  } else {
    parallel(rows, row, f);
  }
}

}  // namespace

Tensor gelu(const Tensor& x, std::optional<Tensor> bias, bool tanh) {
  GeluInputs inputs(x, bias, nullptr, tanh);
  const Tensor y = empty_cpu(x.sizes(), x.scalar_type());
  cpu::GeluArgs& a = inputs.args;
  a.y = y.mutable_data_ptr();
  const auto kernel = cpu::active().gelu;
  over_rows(a.rows, a.size, false, 0.3, [&](int64_t begin, int64_t end) { kernel(a, begin, end); });
  return y;
}

// → (dx, dbias); dbias is empty without a bias.
std::tuple<Tensor, Tensor> gelu_backward(const Tensor& grad, const Tensor& x, std::optional<Tensor> bias,
                                         bool tanh) {
  GeluInputs inputs(x, bias, &grad, tanh);
  const Tensor dx = empty_cpu(x.sizes(), x.scalar_type());
  cpu::GeluArgs& a = inputs.args;
  a.y = dx.mutable_data_ptr();
  const int64_t blocks = bias ? blocks_of(a.rows) : 0;
  const std::unique_ptr<float[]> partial(new float[static_cast<size_t>(blocks * a.size)]);
  a.partial = partial.get();
  const auto kernel = cpu::active().gelu;
  over_rows(a.rows, a.size, bias.has_value(), 0.5,
            [&](int64_t begin, int64_t end) { kernel(a, begin, end); });
  return {dx, bias ? column_sum(partial.get(), blocks, a.size, a.size, bias->scalar_type())
                   : no_gradient(x.scalar_type())};
}

namespace {

Tensor silu_gate(const Tensor& gate, const Tensor& up, std::optional<Tensor> gate_bias,
                 std::optional<Tensor> up_bias) {
  SiluGateInputs inputs(gate, up, gate_bias, up_bias, nullptr);
  const Tensor y = empty_cpu(gate.sizes(), gate.scalar_type());
  cpu::SiluGateArgs& a = inputs.args;
  a.y = y.mutable_data_ptr();
  const auto kernel = cpu::active().silu_gate;
  over_rows(a.rows, a.size, false, 0.3, [&](int64_t begin, int64_t end) { kernel(a, begin, end); });
  return y;
}

// → (dgate, dup, dgate_bias, dup_bias); the last two are empty without biases.
std::tuple<Tensor, Tensor, Tensor, Tensor> silu_gate_backward(const Tensor& grad, const Tensor& gate,
                                                              const Tensor& up,
                                                              std::optional<Tensor> gate_bias,
                                                              std::optional<Tensor> up_bias) {
  SiluGateInputs inputs(gate, up, gate_bias, up_bias, &grad);
  const Tensor dgate = empty_cpu(gate.sizes(), gate.scalar_type());
  const Tensor dup = empty_cpu(gate.sizes(), gate.scalar_type());
  cpu::SiluGateArgs& a = inputs.args;
  a.y = dgate.mutable_data_ptr();
  a.dup = dup.mutable_data_ptr();
  const int64_t blocks = gate_bias ? blocks_of(a.rows) : 0;
  const std::unique_ptr<float[]> partial(new float[static_cast<size_t>(blocks * 2 * a.size)]);
  a.partial = partial.get();
  const auto kernel = cpu::active().silu_gate;
  over_rows(a.rows, a.size, gate_bias.has_value(), 0.6,
            [&](int64_t begin, int64_t end) { kernel(a, begin, end); });
  if (!gate_bias) return {dgate, dup, no_gradient(gate.scalar_type()), no_gradient(gate.scalar_type())};
  const ScalarType dtype = gate_bias->scalar_type();
  return {dgate, dup, column_sum(partial.get(), blocks, 2 * a.size, a.size, dtype),
          column_sum(partial.get() + a.size, blocks, 2 * a.size, a.size, dtype)};
}

}  // namespace
}  // namespace llmcli

STABLE_TORCH_LIBRARY_IMPL(llmcli, CPU, m) {
  m.impl("gelu", TORCH_BOX(&llmcli::gelu));
  m.impl("gelu_backward", TORCH_BOX(&llmcli::gelu_backward));
  m.impl("silu_gate", TORCH_BOX(&llmcli::silu_gate));
  m.impl("silu_gate_backward", TORCH_BOX(&llmcli::silu_gate_backward));
}
