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
__device__ inline bool sync_block_or(bool x) { return __syncthreads_or(x); }
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

// Rounded each for itself: the compiler fuses neither with what is around it.
__device__ inline float multiply_alone(float a, float b) { return __fmul_rn(a, b); }
__device__ inline float add_alone(float a, float b) { return __fadd_rn(a, b); }

// Adds to a number in shared memory that other threads add to.
__device__ inline void add_shared(unsigned long long* to, unsigned long long x) { atomicAdd(to, x); }
__device__ inline unsigned bits_of(float x) { return __float_as_uint(x); }
__device__ inline float from_bits(unsigned x) { return __uint_as_float(x); }

// sum + the products of four unsigned bytes and four signed ones (9.7.1.23).
__device__ inline int dot_bytes(uint32_t u, uint32_t s, int sum) {
  int y;
  asm("dp4a.u32.s32 %0, %1, %2, %3;" : "=r"(y) : "r"(u), "r"(s), "r"(sum));
  return y;
}

// 1 / x within 1 ulp, subnormal numbers as zeros (9.7.3.14).
__device__ inline float reciprocal_fast(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
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

template <class T>
__device__ uint32_t pack(float low, float high);  // two numbers in a register
template <>
__device__ inline uint32_t pack<bf16>(float low, float high) {
  uint32_t y;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
  return y;
}
template <>
__device__ inline uint32_t pack<f16>(float low, float high) {
  uint32_t y;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
  return y;
}

__device__ inline uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// 16 bytes from global to shared memory, or zeros where they are not `there`, some time before a wait for
// their group returns (9.7.9.25.3).
__device__ inline void copy_async(void* to, const void* from, bool there) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from),
               "r"(there ? 16 : 0)
               : "memory");
}
__device__ inline void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int kGroups>  // all groups but the newest kGroups
__device__ inline void copy_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kGroups) : "memory");
}

// Four matrices of 8 x 8 numbers of 16 bits in shared memory: lane 8 m + r says where row r of matrix m lies,
// and gets of matrix m, in x[m], elements 2 c and 2 c + 1 of row lane / 4, c = lane % 4 (9.7.14.5.15).
__device__ inline void load_matrices(const void* row, uint32_t (&x)[4]) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
               : "r"(shared_address(row))
               : "memory");
}
// The same of the matrices' transposes.
__device__ inline void load_matrices_transposed(const void* row, uint32_t (&x)[4]) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
               : "r"(shared_address(row))
               : "memory");
}

// c += a b, a (16, 16), b (16, 8), c (16, 8), in the fragments of m16n8k16 (9.7.14.5.8).
template <class T>
__device__ void multiply(const uint32_t (&a)[4], uint32_t b0, uint32_t b1, float (&c)[4]);
template <>
__device__ inline void multiply<bf16>(const uint32_t (&a)[4], uint32_t b0, uint32_t b1, float (&c)[4]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
template <>
__device__ inline void multiply<f16>(const uint32_t (&a)[4], uint32_t b0, uint32_t b1, float (&c)[4]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// c += a b, a (16, 32) signed bytes, b (32, 8) unsigned ones, c (16, 8), in the fragments of m16n8k32
// (9.7.14.5.10).
__device__ inline void multiply_bytes(const uint32_t (&a)[4], uint32_t b0, uint32_t b1, int (&c)[4]) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.u8.s32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

}  // namespace llmcli::cuda
