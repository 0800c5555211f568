// llmcli::lstm_cell and gru_cell on CPU tensors.
#include <tuple>

#include "rows.h"

namespace llmcli {
namespace {

// x and h (B,gates*H), the products of the gates; x rows may be apart, all else is contiguous.
cpu::RecurrentCellArgs cell_args(const Tensor& x, const Tensor& h, const Tensor& state, int64_t gates,
                                 const Tensor& y) {
  STD_TORCH_CHECK(x.dim() == 2 && h.sizes() == x.sizes() && state.dim() == 2 && state.size(0) == x.size(0) &&
                      gates * state.size(1) == x.size(1) && h.scalar_type() == x.scalar_type() &&
                      (x.size(1) <= 1 || x.stride(1) == 1) && h.is_contiguous() && state.is_contiguous(),
                  "recurrent cell: expected x and h (B,", gates,
                  "*H) of one dtype and a state (B,H), contiguous");
  cpu::RecurrentCellArgs a{};
  a.x = x.const_data_ptr();
  a.h = h.const_data_ptr();
  a.state = state.const_data_ptr();
  a.y = y.mutable_data_ptr();
  a.size = state.size(1);
  a.x_stride = x.stride(0);
  a.dtype = dtype_of(x, "recurrent cell");
  return a;
}

void run(const cpu::RecurrentCellArgs& a, int64_t rows) {
  const auto kernel = cpu::active().recurrent_cell;
  parallel(a.size == 0 ? 0 : rows, static_cast<double>(a.size) * 3.0,
           [&](int64_t begin, int64_t end) { kernel(a, begin, end); });
}

// → (h, c), c float32.
std::tuple<Tensor, Tensor> lstm_cell(const Tensor& x, const Tensor& h, const Tensor& c) {
  STD_TORCH_CHECK(c.scalar_type() == ScalarType::Float, "lstm_cell: expected a float32 cell state");
  const Tensor y = empty_cpu(c.sizes(), x.scalar_type()), next = empty_cpu(c.sizes(), ScalarType::Float);
  cpu::RecurrentCellArgs a = cell_args(x, h, c, 4, y);
  a.cell = static_cast<float*>(next.mutable_data_ptr());
  run(a, x.size(0));
  return {y, next};
}

Tensor gru_cell(const Tensor& x, const Tensor& h, const Tensor& state) {
  STD_TORCH_CHECK(state.scalar_type() == x.scalar_type(), "gru_cell: expected a state of the gates' dtype");
  const Tensor y = empty_cpu(state.sizes(), x.scalar_type());
  run(cell_args(x, h, state, 3, y), x.size(0));
  return y;
}

}  // namespace
}  // namespace llmcli

STABLE_TORCH_LIBRARY_IMPL(llmcli, CPU, m) {
  m.impl("lstm_cell", TORCH_BOX(&llmcli::lstm_cell));
  m.impl("gru_cell", TORCH_BOX(&llmcli::gru_cell));
}
