// Sums over rows, as in cpu/column_sum.h: the last step of the gradients of weights and biases. The 32 warps
// of a block share the rows of 32 columns, each in rising order, and are added in order: the sum depends on
// the number of rows alone. Traffic: the rows once, 128 bytes at a time.
#include "kernels.h"
#include "launch.h"
#include "warp.h"

namespace llmcli::cuda {
namespace {

constexpr int kWarps = 32;

template <class T>
__global__ void __launch_bounds__(32 * kWarps) column_sum_kernel(const cpu::ColumnSumArgs a) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int64_t column = static_cast<int64_t>(blockIdx.x) * 32 + lane;
  float* const parts = shared_memory<float>();
  float sum = 0.0f;
  if (column < a.columns) {
#pragma unroll 4
    for (int64_t row = warp; row < a.rows; row += kWarps) sum += a.x[row * a.stride + column];
  }
  parts[threadIdx.x] = sum;
  sync_block();
  if (warp > 0 || column >= a.columns) return;
  for (int other = 1; other < kWarps; ++other) sum += parts[32 * other + lane];
  from_float(sum, static_cast<T*>(a.y) + column);
}

}  // namespace

cudaError_t column_sum(const cpu::ColumnSumArgs& args, cudaStream_t stream) {
  return with_dtype(args.dtype, [&](auto element) {
    return launch(column_sum_kernel<decltype(element)>, dim3(static_cast<unsigned>((args.columns + 31) / 32)),
                  32 * kWarps, sizeof(float) * 32 * kWarps, stream, args);
  });
}

}  // namespace llmcli::cuda
