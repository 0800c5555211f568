// llmcli::gelu, silu_gate and their backward on CPU tensors.
#include <tuple>

#include "rows.h"

namespace llmcli {
namespace {

// bias (C,), contiguous, float32 (true) or of x's dtype.
bool check_bias(const Tensor& x, const Tensor& bias) {
  STD_TORCH_CHECK(bias.numel() == x.size(x.dim() - 1) && bias.is_contiguous() &&
                      (bias.scalar_type() == x.scalar_type() || bias.scalar_type() == ScalarType::Float),
                  "activation: expected a contiguous bias (C,) of float32 or of x's dtype");
  return bias.scalar_type() == ScalarType::Float;
}

void check_like(const Tensor& x, const Tensor& other) {
  STD_TORCH_CHECK(x.dim() >= 1 && x.sizes() == other.sizes() && x.scalar_type() == other.scalar_type(),
                  "activation: inputs differ in shape or dtype");
}

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

cpu::GeluArgs gelu_args(const Tensor& x, const RowTensor& rows, const std::optional<Tensor>& bias, bool tanh,
                        const Tensor& y) {
  cpu::GeluArgs a{};
  a.dtype = dtype_of(x, "gelu");
  a.tanh = tanh;
  if (bias) {
    a.wide_bias = check_bias(x, *bias);
    a.bias = bias->const_data_ptr();
  }
  a.size = x.size(x.dim() - 1);
  a.rows = row_count(x);
  a.x = rows.data();
  a.x_rows = rows.layout();
  a.y = y.mutable_data_ptr();
  return a;
}

Tensor gelu(const Tensor& x, std::optional<Tensor> bias, bool tanh) {
  check_like(x, x);
  const Tensor y = empty_cpu(x.sizes(), x.scalar_type());
  const RowTensor rows(x);
  const cpu::GeluArgs a = gelu_args(x, rows, bias, tanh, y);
  const auto kernel = cpu::active().gelu;
  over_rows(a.rows, a.size, false, 0.3, [&](int64_t begin, int64_t end) { kernel(a, begin, end); });
  return y;
}

// → (dx, dbias); dbias is empty without a bias.
std::tuple<Tensor, Tensor> gelu_backward(const Tensor& grad, const Tensor& x, std::optional<Tensor> bias,
                                         bool tanh) {
  check_like(x, grad);
  const Tensor dx = empty_cpu(x.sizes(), x.scalar_type());
  const RowTensor rows(x), grad_rows(grad);
  cpu::GeluArgs a = gelu_args(x, rows, bias, tanh, dx);
  a.grad = grad_rows.data();
  a.grad_rows = grad_rows.layout();
  const int64_t blocks = bias ? blocks_of(a.rows) : 0;
  const std::unique_ptr<float[]> partial(new float[static_cast<size_t>(blocks * a.size)]);
  a.partial = partial.get();
  const auto kernel = cpu::active().gelu;
  over_rows(a.rows, a.size, bias.has_value(), 0.5,
            [&](int64_t begin, int64_t end) { kernel(a, begin, end); });
  return {dx, bias ? column_sum(partial.get(), blocks, a.size, a.size, bias->scalar_type())
                   : no_gradient(x.scalar_type())};
}

struct SiluGateInputs {
  RowTensor gate, up;
  cpu::SiluGateArgs args{};

  SiluGateInputs(const Tensor& g, const Tensor& u, const std::optional<Tensor>& gate_bias,
                 const std::optional<Tensor>& up_bias)
      : gate(g), up(u) {
    check_like(g, u);
    STD_TORCH_CHECK(gate_bias.has_value() == up_bias.has_value(), "silu_gate: expected both biases or none");
    args.dtype = dtype_of(g, "silu_gate");
    if (gate_bias) {
      args.wide_bias = check_bias(g, *gate_bias);
      STD_TORCH_CHECK(check_bias(u, *up_bias) == args.wide_bias, "silu_gate: biases differ in dtype");
      args.gate_bias = gate_bias->const_data_ptr();
      args.up_bias = up_bias->const_data_ptr();
    }
    args.size = g.size(g.dim() - 1);
    args.rows = row_count(g);
    args.gate = gate.data();
    args.gate_rows = gate.layout();
    args.up = up.data();
    args.up_rows = up.layout();
  }
};

Tensor silu_gate(const Tensor& gate, const Tensor& up, std::optional<Tensor> gate_bias,
                 std::optional<Tensor> up_bias) {
  SiluGateInputs inputs(gate, up, gate_bias, up_bias);
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
  check_like(gate, grad);
  SiluGateInputs inputs(gate, up, gate_bias, up_bias);
  const RowTensor grad_rows(grad);
  const Tensor dgate = empty_cpu(gate.sizes(), gate.scalar_type());
  const Tensor dup = empty_cpu(gate.sizes(), gate.scalar_type());
  cpu::SiluGateArgs& a = inputs.args;
  a.grad = grad_rows.data();
  a.grad_rows = grad_rows.layout();
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
