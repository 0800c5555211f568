// llmcli::lstm_cell and gru_cell on CUDA tensors.
#include "recurrent_cell.h"

#include <tuple>

#include "cuda.h"

namespace llmcli {
namespace {

// What computes a cell on the device of x.
auto on_gpu(const Tensor& x) {
  return [&x](const cpu::RecurrentCellArgs& a, int64_t rows) {
    on_device_of(x, "recurrent cell",
                 [&](cudaStream_t stream) { return cuda::recurrent_cell(a, rows, stream); });
  };
}

std::tuple<Tensor, Tensor> lstm_cell(const Tensor& x, const Tensor& h, const Tensor& c) {
  const Tensor y = torch::stable::new_empty(x, c.sizes()), next = torch::stable::new_empty(c, c.sizes());
  lstm_cell_into(x, h, c, y, next, on_gpu(x));
  return {y, next};
}

Tensor gru_cell(const Tensor& x, const Tensor& h, const Tensor& state) {
  const Tensor y = torch::stable::new_empty(x, state.sizes());
  gru_cell_into(x, h, state, y, on_gpu(x));
  return y;
}

}  // namespace
}  // namespace llmcli

STABLE_TORCH_LIBRARY_IMPL(llmcli, CUDA, m) {
  m.impl("lstm_cell", TORCH_BOX(&llmcli::lstm_cell));
  m.impl("gru_cell", TORCH_BOX(&llmcli::gru_cell));
}
