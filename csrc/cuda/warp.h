// What all kernels share: the GPU's instructions, reductions over lanes, 16 bytes at a time.
#pragma once
#include <cstdint>

#if defined(__CUDACC__)
#include "ptx.h"
#else
#include <emulated_ptx.h>  // tests/cuda/emulation: the same instructions on a CPU
#endif

namespace llmcli::cuda {

constexpr float kInfinity = __builtin_huge_valf();
constexpr float kLog2E = 1.4426950408889634f;

struct Sum {
  __device__ float operator()(float a, float b) const { return a + b; }
};
struct Max {
  __device__ float operator()(float a, float b) const { return fmaxf(a, b); }
};

// Every lane gets op over its group of kLanes neighbours, the same bits in each.
template <int kLanes, class Op>
__device__ float reduce_lanes(float x, Op op) {
#pragma unroll
  for (int lanes = kLanes / 2; lanes > 0; lanes /= 2) x = op(x, shuffle_xor(x, lanes));
  return x;
}

// Elements in 16 bytes.
template <class T>
constexpr int kVector = 16 / sizeof(T);

template <class T>
struct alignas(16) Vector {
  T at[kVector<T>];
};

template <class T>
__device__ bool aligned(const T* p) {
  return reinterpret_cast<uintptr_t>(p) % 16 == 0;
}

// Elements i to i + kVector of a row; those past its end are zeros.
template <class T>
__device__ Vector<T> load_vector(const T* row, int64_t i, int64_t size) {
  if (aligned(row) && i + kVector<T> <= size) return *reinterpret_cast<const Vector<T>*>(row + i);
  Vector<T> x{};
#pragma unroll
  for (int j = 0; j < kVector<T>; ++j)
    if (i + j < size) x.at[j] = row[i + j];
  return x;
}
template <class T>
__device__ void store_vector(T* row, int64_t i, int64_t size, const float (&x)[kVector<T>]) {
  Vector<T> y;
#pragma unroll
  for (int j = 0; j < kVector<T>; ++j) from_float(x[j], &y.at[j]);
  if (aligned(row) && i + kVector<T> <= size) {
    *reinterpret_cast<Vector<T>*>(row + i) = y;
    return;
  }
#pragma unroll
  for (int j = 0; j < kVector<T>; ++j)
    if (i + j < size) row[i + j] = y.at[j];
}

}  // namespace llmcli::cuda
