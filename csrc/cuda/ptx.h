// The instructions that C++ has no words for, as the GPU has them (sm_80 and newer). Each has the same
// meaning on a CPU in tests/cuda/emulation/emulated_ptx.h. Sections are those of the PTX ISA, version 9.0.
#pragma once
#include <cuda_runtime.h>

#include "../cpu/types.h"

namespace llmcli::cuda {

using cpu::bf16;
using cpu::f16;

// The block's dynamic shared memory.
template <class T>
__device__ T* shared_memory() {
  extern __shared__ __align__(128) unsigned char shared_bytes[];
  return reinterpret_cast<T*>(shared_bytes);
}

__device__ inline void sync_block() { __syncthreads(); }
__device__ inline void sync_warp() { __syncwarp(); }
template <class T>
__device__ inline T shuffle_xor(T x, int lanes) {
  return __shfl_xor_sync(0xffffffffu, x, lanes);
}

// 2^x within 2 ulp, subnormal results as zeros (9.7.3.21).
__device__ inline float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(bf16 x) { return __uint_as_float(static_cast<unsigned>(x.bits) << 16); }
__device__ inline float to_float(f16 x) {
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
  return y;
}
__device__ inline void from_float(float x, float* y) { *y = x; }
__device__ inline void from_float(float x, bf16* y) {
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y->bits) : "f"(x));
}
__device__ inline void from_float(float x, f16* y) { asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y->bits) : "f"(x)); }

}  // namespace llmcli::cuda
