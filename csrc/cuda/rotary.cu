// Rotary position embedding, as in cpu/rotary.h: one thread turns one pair, or copies one element behind the
// pairs. Traffic: x once, y once; the angles of a position serve all its heads from the cache.
#include "kernels.h"
#include "launch.h"
#include "warp.h"

namespace llmcli::cuda {
namespace {

constexpr int kThreads = 256;

template <class T>
__global__ void __launch_bounds__(kThreads) rotary_kernel(const cpu::RotaryArgs a, const int64_t items) {
  const int64_t item = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (item >= items) return;
  const int64_t width = a.D - a.half;  // items of a head
  const int64_t head = item / width, i = item % width, row = head / a.H, h = head % a.H;
  const int64_t b = row / a.T, t = row % a.T;
  const T* const x = static_cast<const T*>(a.x) + b * a.x_b + t * a.x_t + h * a.x_h;
  T* const y = static_cast<T*>(a.y) + head * a.D;
  if (i >= a.half) {
    y[a.half + i] = x[a.half + i];
    return;
  }
  const int64_t angle = b * a.angle_b + t * a.angle_t + i;
  const float u = to_float(x[i]), v = to_float(x[a.half + i]), cosine = a.cos[angle], sine = a.sin[angle];
  from_float(u * cosine - v * sine, y + i);
  from_float(v * cosine + u * sine, y + a.half + i);
}

}  // namespace

cudaError_t rotary(const cpu::RotaryArgs& args, int64_t positions, cudaStream_t stream) {
  const int64_t items = positions * args.H * (args.D - args.half);
  return with_dtype(args.dtype, [&](auto element) {
    return launch(rotary_kernel<decltype(element)>,
                  dim3(static_cast<unsigned>((items + kThreads - 1) / kThreads)), kThreads, 0, stream, args,
                  items);
  });
}

}  // namespace llmcli::cuda
