// One step of an LSTM or a GRU, as in cpu/recurrent_cell.h: everything between two matrix products, 16 bytes
// of a row's state for each thread, read once and written once.
#include "functions.h"
#include "rows.h"

namespace llmcli::cuda {
namespace {

constexpr int kThreads = 256;

// A thread's part of a row: elements i to i + kVector of each gate and of the state.
template <class T>
struct Part {
  const cpu::RecurrentCellArgs& a;
  int64_t row, i;

  // Of gate k of x, or of h.
  __device__ void load_x(int k, float (&y)[kVector<T>]) const {
    load_weights<T>(static_cast<const T*>(a.x) + row * a.x_stride + k * a.size, false, i, a.size, y);
  }
  __device__ void load_h(int k, int gates, float (&y)[kVector<T>]) const {
    load_weights<T>(static_cast<const T*>(a.h) + (row * gates + k) * a.size, false, i, a.size, y);
  }
  __device__ void load_gate(int k, int gates, float (&y)[kVector<T>]) const {
    float h[kVector<T>];
    load_x(k, y), load_h(k, gates, h);
#pragma unroll
    for (int j = 0; j < kVector<T>; ++j) y[j] += h[j];
  }
};

template <class T>
__device__ void lstm(const Part<T>& part) {
  const cpu::RecurrentCellArgs& a = part.a;
  float in[kVector<T>], keep[kVector<T>], value[kVector<T>], out[kVector<T>], cell[kVector<T>];
  part.load_gate(0, 4, in), part.load_gate(1, 4, keep);
  part.load_gate(2, 4, value), part.load_gate(3, 4, out);
  load_weights<T>(static_cast<const float*>(a.state) + part.row * a.size, true, part.i, a.size, cell);
#pragma unroll
  for (int j = 0; j < kVector<T>; ++j) {
    cell[j] = logistic(keep[j]).p * cell[j] + logistic(in[j]).p * tanh_fast(value[j]);
    out[j] = logistic(out[j]).p * tanh_fast(cell[j]);
  }
  store_vector(static_cast<T*>(a.y) + part.row * a.size, part.i, a.size, out);
#pragma unroll
  for (int first = 0; first < kVector<T>; first += kVector<float>)
    store_vector(a.cell + part.row * a.size, part.i + first, a.size,
                 *reinterpret_cast<float (*)[kVector<float>]>(&cell[first]));
}

template <class T>
__device__ void gru(const Part<T>& part) {
  const cpu::RecurrentCellArgs& a = part.a;
  float reset[kVector<T>], keep[kVector<T>], value[kVector<T>], product[kVector<T>], old[kVector<T>];
  part.load_gate(0, 3, reset), part.load_gate(1, 3, keep);
  part.load_x(2, value), part.load_h(2, 3, product);
  load_weights<T>(static_cast<const T*>(a.state) + part.row * a.size, false, part.i, a.size, old);
#pragma unroll
  for (int j = 0; j < kVector<T>; ++j) {
    value[j] = tanh_fast(fmaf(logistic(reset[j]).p, product[j], value[j]));
    old[j] = fmaf(logistic(keep[j]).p, old[j] - value[j], value[j]);  // (1 - keep) * value + keep * old
  }
  store_vector(static_cast<T*>(a.y) + part.row * a.size, part.i, a.size, old);
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    recurrent_cell_kernel(const cpu::RecurrentCellArgs a, const int64_t items, const int64_t width) {
  const int64_t item = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (item >= items) return;
  Part<T> part{a, 0, 0};
  place_of(item, width, &part.row, &part.i);
  part.i *= kVector<T>;
  if (a.cell) {
    lstm(part);
  } else {
    gru(part);
  }
}

}  // namespace

cudaError_t recurrent_cell(const cpu::RecurrentCellArgs& args, int64_t rows, cudaStream_t stream) {
  return with_dtype(args.dtype, [&](auto element) {
    using T = decltype(element);
    const int64_t width = (args.size + kVector<T> - 1) / kVector<T>, items = rows * width;
    return launch(recurrent_cell_kernel<T>, dim3(static_cast<unsigned>((items + kThreads - 1) / kThreads)),
                  kThreads, 0, stream, args, items, width);
  });
}

}  // namespace llmcli::cuda
