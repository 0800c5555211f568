// cap * tanh(x / cap) and its gradient, as in cpu/softcap.h: all rows as one, 16 bytes for each thread, read
// once and written once.
#include "functions.h"
#include "kernels.h"
#include "launch.h"

namespace llmcli::cuda {
namespace {

constexpr int kThreads = 256;

template <class T>
__global__ void __launch_bounds__(kThreads) softcap_kernel(const cpu::SoftcapArgs a, const int64_t size) {
  const int64_t i = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kVector<T>;
  if (i >= size) return;
  const float inverse = 1.0f / a.cap;
  const Vector<T> xs = load_vector(static_cast<const T*>(a.x), i, size);
  Vector<T> grads{};
  if (a.grad) grads = load_vector(static_cast<const T*>(a.grad), i, size);
  float y[kVector<T>];
#pragma unroll
  for (int j = 0; j < kVector<T>; ++j) {
    const float x = to_float(xs.at[j]) * inverse;
    y[j] = a.grad ? to_float(grads.at[j]) * tanh_slope(x) : a.cap * tanh_fast(x);
  }
  store_vector(static_cast<T*>(a.y), i, size, y);
}

}  // namespace

cudaError_t softcap(const cpu::SoftcapArgs& args, int64_t rows, cudaStream_t stream) {
  const int64_t size = rows * args.size;
  return with_dtype(args.dtype, [&](auto element) {
    using T = decltype(element);
    constexpr int64_t kEach = kThreads * kVector<T>;
    return launch(softcap_kernel<T>, dim3(static_cast<unsigned>((size + kEach - 1) / kEach)), kThreads, 0,
                  stream, args, size);
  });
}

}  // namespace llmcli::cuda
