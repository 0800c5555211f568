// What the bindings of LSTM and GRU cells share: checks, and the argument struct.
#pragma once
#include "rows.h"

namespace llmcli {

// x and h (B,gates*H), the products of the gates; x rows may be apart, all else is contiguous.
inline cpu::RecurrentCellArgs cell_args(const Tensor& x, const Tensor& h, const Tensor& state, int64_t gates,
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

// The new hidden state into y and the new cell, float32, into next, by run(args, rows).
template <class Run>
void lstm_cell_into(const Tensor& x, const Tensor& h, const Tensor& c, const Tensor& y, const Tensor& next,
                    const Run& run) {
  STD_TORCH_CHECK(c.scalar_type() == ScalarType::Float, "lstm_cell: expected a float32 cell state");
  cpu::RecurrentCellArgs a = cell_args(x, h, c, 4, y);
  a.cell = static_cast<float*>(next.mutable_data_ptr());
  if (c.numel() > 0) run(a, x.size(0));
}

template <class Run>
void gru_cell_into(const Tensor& x, const Tensor& h, const Tensor& state, const Tensor& y, const Run& run) {
  STD_TORCH_CHECK(state.scalar_type() == x.scalar_type(), "gru_cell: expected a state of the gates' dtype");
  const cpu::RecurrentCellArgs a = cell_args(x, h, state, 3, y);
  if (state.numel() > 0) run(a, x.size(0));
}

}  // namespace llmcli
