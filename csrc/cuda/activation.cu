// GELU, SiLU-gate and their backward, as in cpu/activation.h. A thread takes 16 bytes of a row, and in the
// backward the same columns of kRowBlock rows, whose sum is its part of the gradient of a bias. Traffic: each
// input is read once and each output written once; in 16-bit types arithmetic takes about as long, so that
// divisions and exponentials are the GPU's approximate ones.
#include "functions.h"
#include "rows.h"

namespace llmcli::cuda {
namespace {

constexpr int kThreads = 256;

// The columns and rows of a thread; nothing where it is beyond them.
template <class T, bool kBackward>
struct Share {
  int64_t i, block, begin = 0, end = 0;

  __device__ Share(int64_t rows, int64_t size) {
    const int64_t vectors = (size + kVector<T> - 1) / kVector<T>;
    place_of(static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x, vectors, &block, &i);
    i *= kVector<T>;
    const int64_t each = kBackward ? cpu::kRowBlock : 1;
    if (block * each >= rows) return;
    begin = block * each;
    end = begin + each < rows ? begin + each : rows;
  }
  static dim3 grid(int64_t rows, int64_t size) {
    const int64_t blocks = kBackward ? (rows + cpu::kRowBlock - 1) / cpu::kRowBlock : rows;
    const int64_t items = (size + kVector<T> - 1) / kVector<T> * blocks;
    return dim3(static_cast<unsigned>((items + kThreads - 1) / kThreads));
  }
};

template <class T>
__device__ void load_biased(const void* x, const cpu::Rows& rows, int64_t row, int64_t i, int64_t size,
                            const float (&bias)[kVector<T>], float (&z)[kVector<T>]) {
  const Vector<T> xs = load_vector(static_cast<const T*>(x) + offset_of(rows, row), i, size);
#pragma unroll
  for (int j = 0; j < kVector<T>; ++j) z[j] = to_float(xs.at[j]) + bias[j];
}

template <class T>
__device__ void store_sums(float* partial, int64_t i, int64_t size, const float (&sums)[kVector<T>]) {
#pragma unroll
  for (int j = 0; j < kVector<T>; ++j)
    if (i + j < size) partial[i + j] = sums[j];
}

template <class T, bool kTanh, bool kBackward>
__global__ void __launch_bounds__(kThreads) gelu_kernel(const cpu::GeluArgs a) {
  const Share<T, kBackward> share(a.rows, a.size);
  if (share.begin == share.end) return;
  const int64_t i = share.i;
  float bias[kVector<T>] = {}, none[kVector<T>] = {}, sums[kVector<T>] = {};
  if (a.bias) load_weights<T>(a.bias, a.wide_bias, i, a.size, bias);
#pragma unroll 1
  for (int64_t row = share.begin; row < share.end; ++row) {
    float z[kVector<T>], y[kVector<T>];
    load_biased<T>(a.x, a.x_rows, row, i, a.size, bias, z);
    if constexpr (kBackward) load_biased<T>(a.grad, a.grad_rows, row, i, a.size, none, y);
#pragma unroll
    for (int j = 0; j < kVector<T>; ++j) {
      if constexpr (kBackward) {
        y[j] *= gelu_slope<kTanh>(z[j]);
        sums[j] += y[j];
      } else {
        y[j] = gelu_value<kTanh>(z[j]);
      }
    }
    store_vector(static_cast<T*>(a.y) + row * a.size, i, a.size, y);
  }
  if constexpr (kBackward)
    if (a.bias) store_sums<T>(a.partial + share.block * a.size, i, a.size, sums);
}

template <class T, bool kBackward>
__global__ void __launch_bounds__(kThreads) silu_gate_kernel(const cpu::SiluGateArgs a) {
  const Share<T, kBackward> share(a.rows, a.size);
  if (share.begin == share.end) return;
  const int64_t i = share.i;
  float gate_bias[kVector<T>] = {}, up_bias[kVector<T>] = {}, none[kVector<T>] = {};
  float gate_sums[kVector<T>] = {}, up_sums[kVector<T>] = {};
  if (a.gate_bias) {
    load_weights<T>(a.gate_bias, a.wide_bias, i, a.size, gate_bias);
    load_weights<T>(a.up_bias, a.wide_bias, i, a.size, up_bias);
  }
#pragma unroll 1
  for (int64_t row = share.begin; row < share.end; ++row) {
    float z[kVector<T>], u[kVector<T>], g[kVector<T>];
    load_biased<T>(a.gate, a.gate_rows, row, i, a.size, gate_bias, z);
    load_biased<T>(a.up, a.up_rows, row, i, a.size, up_bias, u);
    if constexpr (kBackward) load_biased<T>(a.grad, a.grad_rows, row, i, a.size, none, g);
#pragma unroll
    for (int j = 0; j < kVector<T>; ++j) {
      const Logistic l = logistic(z[j]);
      if constexpr (kBackward) {
        const float of_gate = g[j] * u[j] * fmaf(z[j], l.p * l.q, l.p), of_up = g[j] * (z[j] * l.p);
        gate_sums[j] += of_gate, up_sums[j] += of_up;
        z[j] = of_gate, u[j] = of_up;
      } else {
        z[j] = z[j] * l.p * u[j];
      }
    }
    store_vector(static_cast<T*>(a.y) + row * a.size, i, a.size, z);
    if constexpr (kBackward) store_vector(static_cast<T*>(a.dup) + row * a.size, i, a.size, u);
  }
  if constexpr (kBackward) {
    if (!a.gate_bias) return;
    float* const partial = a.partial + share.block * 2 * a.size;
    store_sums<T>(partial, i, a.size, gate_sums);
    store_sums<T>(partial + a.size, i, a.size, up_sums);
  }
}

template <class T, bool kTanh, bool kBackward>
cudaError_t launch_gelu(const cpu::GeluArgs& args, cudaStream_t stream) {
  return launch(gelu_kernel<T, kTanh, kBackward>, Share<T, kBackward>::grid(args.rows, args.size), kThreads,
                0, stream, args);
}

}  // namespace

cudaError_t activation(const cpu::GeluArgs& args, cudaStream_t stream) {
  return with_dtype(args.dtype, [&](auto element) {
    using T = decltype(element);
    if (args.grad)
      return args.tanh ? launch_gelu<T, true, true>(args, stream) : launch_gelu<T, false, true>(args, stream);
    return args.tanh ? launch_gelu<T, true, false>(args, stream) : launch_gelu<T, false, false>(args, stream);
  });
}

cudaError_t activation(const cpu::SiluGateArgs& args, cudaStream_t stream) {
  return with_dtype(args.dtype, [&](auto element) {
    using T = decltype(element);
    if (args.grad)
      return launch(silu_gate_kernel<T, true>, Share<T, true>::grid(args.rows, args.size), kThreads, 0,
                    stream, args);
    return launch(silu_gate_kernel<T, false>, Share<T, false>::grid(args.rows, args.size), kThreads, 0,
                  stream, args);
  });
}

}  // namespace llmcli::cuda
