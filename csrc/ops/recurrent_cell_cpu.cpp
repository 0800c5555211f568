// llmcli::lstm_cell and gru_cell on CPU tensors.
#include <tuple>

#include "recurrent_cell.h"

namespace llmcli {
namespace {

void on_threads(const cpu::RecurrentCellArgs& a, int64_t rows) {
  const auto kernel = cpu::active().recurrent_cell;
  parallel(rows, static_cast<double>(a.size) * 3.0,
           [&](int64_t begin, int64_t end) { kernel(a, begin, end); });
}

// → (h, c), c float32.
std::tuple<Tensor, Tensor> lstm_cell(const Tensor& x, const Tensor& h, const Tensor& c) {
  const Tensor y = empty_cpu(c.sizes(), x.scalar_type()), next = empty_cpu(c.sizes(), ScalarType::Float);
  lstm_cell_into(x, h, c, y, next, on_threads);
  return {y, next};
}

Tensor gru_cell(const Tensor& x, const Tensor& h, const Tensor& state) {
  const Tensor y = empty_cpu(state.sizes(), x.scalar_type());
  gru_cell_into(x, h, state, y, on_threads);
  return y;
}

}  // namespace
}  // namespace llmcli

STABLE_TORCH_LIBRARY_IMPL(llmcli, CPU, m) {
  m.impl("lstm_cell", TORCH_BOX(&llmcli::lstm_cell));
  m.impl("gru_cell", TORCH_BOX(&llmcli::gru_cell));
}
