// What row-wise kernels share: the threads of a row, chosen by its length alone, and their way through it.
#pragma once
#include "kernels.h"
#include "launch.h"
#include "warp.h"

namespace llmcli::cuda {

// Where row number `row` begins.
__device__ inline int64_t offset_of(const cpu::Rows& rows, int64_t row) {
  int64_t offset = 0;
#pragma unroll
  for (int d = cpu::Rows::kMaxDims - 1; d >= 0; --d) {
    if (d >= rows.dims) continue;
    const int64_t above = d == 0 ? 0 : row / rows.size[d];
    offset += (row - above * rows.size[d]) * rows.stride[d];
    row = above;
  }
  return offset;
}

// Where item number `item` of rows of `width` items lies: the division takes 32 bits where they will do.
__device__ inline void place_of(int64_t item, int64_t width, int64_t* row, int64_t* place) {
  if (item >> 32 == 0) {
    const uint32_t above = static_cast<uint32_t>(item) / static_cast<uint32_t>(width);
    *row = above, *place = static_cast<uint32_t>(item) - above * static_cast<uint32_t>(width);
  } else {
    *row = item / width, *place = item - *row * width;
  }
}

// The threads that share a row: a warp, or the kThreads of a block.
template <int kThreads>
struct Team {
  static constexpr int kBlock = kThreads == 32 ? 128 : kThreads;  // threads of a block
  static constexpr int kTeams = kBlock / kThreads;                // of a block
  static constexpr size_t kShared = kThreads == 32 ? 0 : 2 * sizeof(float) * (kThreads / 32);

  __device__ static int rank() { return static_cast<int>(threadIdx.x) % kThreads; }
  __device__ static int64_t row() {
    return static_cast<int64_t>(blockIdx.x) * kTeams + static_cast<int>(threadIdx.x) / kThreads;
  }
  static dim3 grid(int64_t rows) { return dim3(static_cast<unsigned>((rows + kTeams - 1) / kTeams)); }

  template <class Op>
  __device__ static float reduce(float x, Op op) {
    x = reduce_lanes<32>(x, op);
    if constexpr (kThreads > 32) {
      float* const parts = shared_memory<float>();
      sync_block();  // the parts of the reduction before have been read
      if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = x;
      sync_block();
      x = parts[0];
      for (int warp = 1; warp < kThreads / 32; ++warp) x = op(x, parts[warp]);
    }
    return x;
  }

  // Two sums at once.
  __device__ static void sums(float* x, float* y) {
    *x = reduce_lanes<32>(*x, Sum()), *y = reduce_lanes<32>(*y, Sum());
    if constexpr (kThreads > 32) {
      constexpr int kWarps = kThreads / 32;
      float* const parts = shared_memory<float>();
      sync_block();  // the parts of the reduction before have been read
      if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = *x, parts[kWarps + threadIdx.x / 32] = *y;
      sync_block();
      *x = parts[0], *y = parts[kWarps];
      for (int warp = 1; warp < kWarps; ++warp) *x += parts[warp], *y += parts[kWarps + warp];
    }
  }
};

// A row as its team's threads take it, kVector elements at a time: f(n, i) for this thread's n-th, which
// begins at element i. With kKept the row has at most that many for each thread.
template <class T, int kThreads, int kKept, class F>
__device__ void each_vector(int64_t size, const F& f) {
  const int64_t first = static_cast<int64_t>(Team<kThreads>::rank()) * kVector<T>;
  constexpr int64_t kStep = int64_t{kThreads} * kVector<T>;
  if constexpr (kKept > 0) {
#pragma unroll
    for (int n = 0; n < kKept; ++n)
      if (first + n * kStep < size) f(n, first + n * kStep);
  } else {
    for (int64_t i = first; i < size; i += kStep) f(0, i);
  }
}

// A row that is read twice: from memory once and then from registers, or, with kKept 0, where it is too long
// for them, twice from memory.
template <class T, int kThreads, int kKept>
class Row {
 public:
  __device__ Row(const T* row, int64_t size) : row_(row), size_(size) {
    if constexpr (kKept > 0)
      each_vector<T, kThreads, kKept>(size, [&](int n, int64_t i) { kept_[n] = load_vector(row, i, size); });
  }
  // A row that make(i) makes, 16 bytes from element i on, and leaves in memory at `row`.
  template <class Make>
  __device__ Row(const T* row, int64_t size, const Make& make) : row_(row), size_(size) {
    each_vector<T, kThreads, kKept>(size, [&](int n, int64_t i) { kept_[n] = make(i); });
  }
  __device__ Vector<T> at(int n, int64_t i) const {
    if constexpr (kKept > 0) return kept_[n];
    return load_vector(row_, i, size_);
  }

 private:
  const T* row_;
  int64_t size_;
  Vector<T> kept_[kKept > 0 ? kKept : 1];
};

// Elements i to i + kVector of weights (size) that are float32 when `wide`, else of T; past the end zeros.
template <class T>
__device__ void load_weights(const void* weights, bool wide, int64_t i, int64_t size,
                             float (&w)[kVector<T>]) {
  if (wide) {
#pragma unroll
    for (int part = 0; part < kVector<T>; part += kVector<float>) {
      const Vector<float> x = load_vector(static_cast<const float*>(weights), i + part, size);
#pragma unroll
      for (int j = 0; j < kVector<float>; ++j) w[part + j] = x.at[j];
    }
  } else {
    const Vector<T> x = load_vector(static_cast<const T*>(weights), i, size);
#pragma unroll
    for (int j = 0; j < kVector<T>; ++j) w[j] = to_float(x.at[j]);
  }
}

// f(way) with the team for rows of `size` elements of T, and how many of a thread's vectors stay in
// registers.
template <int kThreads_, int kKept_>
struct Way {
  static constexpr int kThreads = kThreads_, kKept = kKept_;
};
template <class T, class F>
cudaError_t with_team(int64_t size, const F& f) {
  const int64_t vectors = (size + kVector<T> - 1) / kVector<T>;
  if (vectors <= 4 * 32) return f(Way<32, 4>());
  if (vectors <= 4 * 256) return f(Way<256, 4>());
  return f(Way<1024, 0>());
}

}  // namespace llmcli::cuda
