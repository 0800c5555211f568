// The highest number of each row and where it first stands, as in cpu/argmax.h; NaN is higher than all.
// Traffic: the row once; four loads of a thread are under way at a time, because a row is one block's work.
#include "rows.h"

namespace llmcli::cuda {
namespace {

struct Place {
  float value;
  int64_t index;

  __device__ void take(float other, int64_t at) {
    const bool higher = other > value || (other != other && value == value);
    const bool equal = other == value || (other != other && value != value);
    if (higher || (equal && at < index)) value = other, index = at;
  }
};

template <class T, int kThreads>
__global__ void __launch_bounds__(Team<kThreads>::kBlock)
    argmax_kernel(const cpu::ArgmaxArgs a, const int64_t rows) {
  using Threads = Team<kThreads>;
  const bool beyond = Threads::row() >= rows;  // warps of the last block, which works on its last row as well
  const int64_t row = beyond ? rows - 1 : Threads::row();
  const T* const x = static_cast<const T*>(a.x) + offset_of(a.x_rows, row);
  Place best{-kInfinity, a.size};
#pragma unroll 4
  for (int64_t i = static_cast<int64_t>(Threads::rank()) * kVector<T>; i < a.size;
       i += int64_t{kThreads} * kVector<T>) {
    const Vector<T> xs = load_vector(x, i, a.size);
#pragma unroll
    for (int j = 0; j < kVector<T>; ++j)
      if (i + j < a.size) best.take(to_float(xs.at[j]), i + j);
  }
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) {
    const float value = shuffle_xor(best.value, lanes);
    best.take(value, shuffle_xor(best.index, lanes));
  }
  if constexpr (kThreads > 32) {
    Place* const parts = shared_memory<Place>();
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = best;
    sync_block();
    for (int warp = 0; warp < kThreads / 32; ++warp) best.take(parts[warp].value, parts[warp].index);
  }
  if (beyond || Threads::rank() != 0) return;
  a.highest[row] = best.value;
  a.index[row] = best.index;
}

}  // namespace

cudaError_t argmax(const cpu::ArgmaxArgs& args, int64_t rows, cudaStream_t stream) {
  return with_dtype(args.dtype, [&](auto element) {
    using T = decltype(element);
    return with_team<T>(args.size, [&](auto way) {
      using Threads = Team<way.kThreads>;
      return launch(argmax_kernel<T, way.kThreads>, Threads::grid(rows), Threads::kBlock, sizeof(Place) * 32,
                    stream, args, rows);
    });
  });
}

}  // namespace llmcli::cuda
