// One step of an LSTM (Hochreiter and Schmidhuber 1997, with forget gates) or a GRU (Cho et al. 2014, the
// reset gate applied to the product, as in torch) from the gates' products: everything between two matrix
// products.
#pragma once
#include "activation.h"
#include "vec_loop.h"

namespace llmcli::cpu::LLMCLI_ISA {

LLMCLI_INLINE F sigmoid(F x) { return logistic<6>(x).p; }

template <typename T>
void lstm_rows(const RecurrentCellArgs& a, int64_t begin, int64_t end) {
  const int64_t H = a.size;
  for (int64_t row = begin; row < end; ++row) {
    const T *x = static_cast<const T*>(a.x) + row * a.x_stride, *h = static_cast<const T*>(a.h) + row * 4 * H;
    const float* cell = static_cast<const float*>(a.state) + row * H;
    T* y = static_cast<T*>(a.y) + row * H;
    float* next = a.cell + row * H;
    each_vector(H, [&](int64_t i, int64_t n) LLMCLI_INLINE_BODY {
      const auto gate = [&](int64_t k) LLMCLI_INLINE_BODY {
        return add(load_up_to(x + k * H + i, n), load_up_to(h + k * H + i, n));
      };
      const F in = sigmoid(gate(0)), keep = sigmoid(gate(1)), value = tanh(gate(2)), out = sigmoid(gate(3));
      const F c = add(mul(keep, load_up_to(cell + i, n)), mul(in, value));
      store_up_to(next + i, c, n);
      store_up_to(y + i, mul(out, tanh(c)), n);
    });
  }
}

template <typename T>
void gru_rows(const RecurrentCellArgs& a, int64_t begin, int64_t end) {
  const int64_t H = a.size;
  for (int64_t row = begin; row < end; ++row) {
    const T *x = static_cast<const T*>(a.x) + row * a.x_stride, *h = static_cast<const T*>(a.h) + row * 3 * H;
    const T* state = static_cast<const T*>(a.state) + row * H;
    T* y = static_cast<T*>(a.y) + row * H;
    each_vector(H, [&](int64_t i, int64_t n) LLMCLI_INLINE_BODY {
      const F reset = sigmoid(add(load_up_to(x + i, n), load_up_to(h + i, n)));
      const F keep = sigmoid(add(load_up_to(x + H + i, n), load_up_to(h + H + i, n)));
      const F value = tanh(add(load_up_to(x + 2 * H + i, n), mul(reset, load_up_to(h + 2 * H + i, n))));
      // (1 - keep) * value + keep * state
      const F old = load_up_to(state + i, n);
      store_up_to(y + i, add(value, mul(keep, sub(old, value))), n);
    });
  }
}

template <typename T>
void recurrent_cell_rows(const RecurrentCellArgs& a, int64_t begin, int64_t end) {
  return a.cell ? lstm_rows<T>(a, begin, end) : gru_rows<T>(a, begin, end);
}

void recurrent_cell(const RecurrentCellArgs& a, int64_t begin, int64_t end) {
  switch (a.dtype) {
    case DType::f32:
      return recurrent_cell_rows<float>(a, begin, end);
    case DType::bf16:
      return recurrent_cell_rows<bf16>(a, begin, end);
    case DType::f16:
      return recurrent_cell_rows<f16>(a, begin, end);
  }
}

}  // namespace llmcli::cpu::LLMCLI_ISA
