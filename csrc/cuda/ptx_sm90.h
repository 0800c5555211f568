// The instructions of sm_90a that C++ has no words for: barriers in shared memory, copies of boxes of a
// tensor, products of a warpgroup's 64 rows with a matrix in shared memory. Each has the same meaning on a
// CPU in tests/cuda/emulation/emulated_ptx_sm90.h. Sections are those of the PTX ISA, version 9.0.
#pragma once
#include <cuda.h>
#include <cudaTypedefs.h>

#include "ptx.h"

namespace llmcli::cuda {

// Registers of each thread of the warpgroup from now on (9.7.19.5).
template <int kRegisters>
__device__ void claim_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ void release_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

// Barriers of some of the block's threads, 1 to 15 (9.7.13.1): to meet, or to be counted without waiting.
__device__ inline void meet(int barrier, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}
__device__ inline void be_counted(int barrier, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

// Writes to shared memory so far are seen by copies and products that begin later (9.7.13.4).
__device__ inline void writes_before_products() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// Counts arrivals and bytes; a phase ends when all that it expects have come (9.7.13.15).
struct Barrier {
  uint64_t state;

  __device__ void begin(int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(this)), "r"(arrivals)
                 : "memory");
  }
  __device__ void arrive() {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(this)) : "memory");
  }
  __device__ void arrive_and_expect(int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(this)),
                 "r"(bytes)
                 : "memory");
  }
  // Until the phase of this parity, of those that follow each other 0, 1, 0, ..., has ended.
  __device__ void wait(int parity) {
    asm volatile(
        "{\n"
        ".reg .pred ended;\n"
        "again:\n"
        "mbarrier.try_wait.parity.shared::cta.b64 ended, [%0], %1;\n"
        "@!ended bra again;\n"
        "}\n" ::"r"(shared_address(this)),
        "r"(parity)
        : "memory");
  }
};
// Barriers that have begun are there for copies as well.
__device__ inline void barriers_begin() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  writes_before_products();
}

// A tensor of numbers of 16 bits, (d3, d2, d1, d0) by strides in elements, d0 contiguous, for copies of boxes
// of (1, 1, rows, 64) (5.5.3). The driver is asked for by name, so that nothing links to it.
using TensorMap = CUtensorMap;
inline cudaError_t describe_tensor(const void* x, const int64_t (&sizes)[4], const int64_t (&strides)[3],
                                   int rows, TensorMap* map) {
  static const PFN_cuTensorMapEncodeTiled_v12000 encode = [] {
    void* found = nullptr;
    cudaDriverEntryPointQueryResult result;
    const cudaError_t error =
        cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000, cudaEnableDefault, &result);
    return reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(error == cudaSuccess ? found : nullptr);
  }();
  if (!encode) return cudaErrorSymbolNotFound;
  const cuuint64_t size[4] = {cuuint64_t(sizes[0]), cuuint64_t(sizes[1]), cuuint64_t(sizes[2]),
                              cuuint64_t(sizes[3])};
  const cuuint64_t bytes[3] = {cuuint64_t(strides[0]) * 2, cuuint64_t(strides[1]) * 2,
                               cuuint64_t(strides[2]) * 2};
  const cuuint32_t box[4] = {64, cuuint32_t(rows), 1, 1}, steps[4] = {1, 1, 1, 1};
  return encode(map, CU_TENSOR_MAP_DATA_TYPE_UINT16, 4, const_cast<void*>(x), size, bytes, box, steps,
                CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS
             ? cudaSuccess
             : cudaErrorInvalidValue;
}

// The box from (d3, d2, d1, d0) on, zeros where the tensor ends, as rows of 128 bytes whose 16 bytes lie at
// the exclusive or of their number and of the row's, modulo 8; `to` begins on 1024 bytes (9.7.9.27.1.2).
__device__ inline void copy_box(void* to, const TensorMap& map, int d0, int d1, int d2, int d3,
                                Barrier* arrives) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, "
      "%4, %5}], "
      "[%6];" ::"r"(shared_address(to)),
      "l"(&map), "r"(d0), "r"(d1), "r"(d2), "r"(d3), "r"(shared_address(arrives))
      : "memory");
}

// Products run beside the threads that begin them. begin() comes before the first that touches registers that
// the thread has touched, commit() ends a group, wait() is for all groups but the newest kGroups (9.7.15.7).
__device__ inline void products_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void products_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int kGroups>
__device__ void products_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kGroups) : "memory");
}
// The compiler knows nothing of products under way: what they write or read is touched before and after here.
template <int kSize>
__device__ void settle(float (&x)[kSize]) {
#pragma unroll
  for (int i = 0; i < kSize; ++i) asm volatile("" : "+f"(x[i])::"memory");
}
template <int kSize>
__device__ void settle(uint32_t (&x)[kSize][4]) {
#pragma unroll
  for (int i = 0; i < kSize * 4; ++i) asm volatile("" : "+r"(x[i / 4][i % 4])::"memory");
}

#define LLMCLI_8(x, i)                                                                        \
  "+f"(x[i]), "+f"(x[i + 1]), "+f"(x[i + 2]), "+f"(x[i + 3]), "+f"(x[i + 4]), "+f"(x[i + 5]), \
      "+f"(x[i + 6]), "+f"(x[i + 7])
#define LLMCLI_32(x, i) LLMCLI_8(x, i), LLMCLI_8(x, i + 8), LLMCLI_8(x, i + 16), LLMCLI_8(x, i + 24)
#define LLMCLI_NAMES_32                                                                                  \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, " \
  "%22, "                                                                                                \
  "%23, %24, %25, %26, %27, %28, %29, %30, %31"
#define LLMCLI_NAMES_64                                                                                    \
  LLMCLI_NAMES_32                                                                                          \
  ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, " \
  "%52, "                                                                                                  \
  "%53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"

// c = a b^T, or c += where it says so: a (64, 16) and b (128, 16) in shared memory, rows by rows; thread t of
// the warpgroup has row 16 w + l / 4 + 8 i, columns 8 n + l % 4 * 2 + j, warp w, lane l, in c[4 n + 2 i + j]
// (9.7.15.5.2).
#define LLMCLI_MULTIPLY_ROWS(T, name)                                                         \
  template <>                                                                                 \
  __device__ inline void multiply_rows<T>(uint64_t a, uint64_t b, bool add, float (&c)[64]) { \
    asm volatile(                                                                             \
        "{\n.reg .pred add;\nsetp.ne.b32 add, %66, 0;\n"                                      \
        "wgmma.mma_async.sync.aligned.m64n128k16.f32." name "." name " {" LLMCLI_NAMES_64     \
        "}, %64, %65, "                                                                       \
        "add, 1, 1, 0, 0;\n}\n"                                                               \
        : LLMCLI_32(c, 0), LLMCLI_32(c, 32)                                                   \
        : "l"(a), "l"(b), "r"(static_cast<int>(add)));                                        \
  }
template <class T>
__device__ void multiply_rows(uint64_t a, uint64_t b, bool add, float (&c)[64]);
LLMCLI_MULTIPLY_ROWS(bf16, "bf16")
LLMCLI_MULTIPLY_ROWS(f16, "f16")

// c = a b, or c += where it says so: a (64, 16) in registers, each warp's 16 rows as in m16n8k16, b (16, 64)
// in shared memory.
#define LLMCLI_MULTIPLY_COLUMNS(T, name)                                                                     \
  template <>                                                                                                \
  __device__ inline void multiply_columns<T>(const uint32_t (&a)[4], uint64_t b, bool add, float (&c)[32]) { \
    asm volatile(                                                                                            \
        "{\n.reg .pred add;\nsetp.ne.b32 add, %37, 0;\n"                                                     \
        "wgmma.mma_async.sync.aligned.m64n64k16.f32." name "." name " {" LLMCLI_NAMES_32                     \
        "}, "                                                                                                \
        "{%32, %33, %34, %35}, %36, add, 1, 1, 1;\n}\n"                                                      \
        : LLMCLI_32(c, 0)                                                                                    \
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(add)));                   \
  }
template <class T>
__device__ void multiply_columns(const uint32_t (&a)[4], uint64_t b, bool add, float (&c)[32]);
LLMCLI_MULTIPLY_COLUMNS(bf16, "bf16")
LLMCLI_MULTIPLY_COLUMNS(f16, "f16")

#undef LLMCLI_8
#undef LLMCLI_32
#undef LLMCLI_NAMES_32
#undef LLMCLI_NAMES_64
#undef LLMCLI_MULTIPLY_ROWS
#undef LLMCLI_MULTIPLY_COLUMNS

}  // namespace llmcli::cuda
