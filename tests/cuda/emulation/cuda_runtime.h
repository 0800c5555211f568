// As much of CUDA's runtime as csrc/cuda uses, on a CPU: a kernel runs, block after block, when it is
// launched.
#pragma once
#include <cmath>

#include "fibers.h"

#define __global__
#define __device__
#define __host__
#define __launch_bounds__(...)
#define __grid_constant__
#define LLMCLI_SM90A

inline const emulation::Index& threadIdx = emulation::machine().thread;
inline const emulation::Index& blockIdx = emulation::machine().block;

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

enum cudaError_t {
  cudaSuccess,
  cudaErrorInvalidValue,
  cudaErrorInvalidConfiguration,
  cudaErrorLaunchFailure
};
enum cudaDeviceAttr { cudaDevAttrComputeCapabilityMajor, cudaDevAttrComputeCapabilityMinor };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
using cudaStream_t = struct CUstream_st*;

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
};

inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  *value = attribute == cudaDevAttrComputeCapabilityMajor ? emulation::machine().capability : 0;
  return cudaSuccess;
}

namespace emulation {
inline const void* granted_to = nullptr;  // the kernel that may have more than 48 KiB
inline size_t granted = 0;
}  // namespace emulation

inline cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute, int bytes) {
  emulation::granted_to = kernel, emulation::granted = static_cast<size_t>(bytes);
  return emulation::granted <= emulation::kMostShared ? cudaSuccess : cudaErrorInvalidValue;
}

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* c, void (*kernel)(Parameters...),
                               const Arguments&... arguments) {
  const dim3 grid = c->gridDim, block = c->blockDim;
  const bool asked = emulation::granted_to == reinterpret_cast<const void*>(kernel);
  if (c->dynamicSmemBytes > (asked ? emulation::granted : size_t{48} << 10)) return cudaErrorInvalidValue;
  if (block.x == 0 || block.x > emulation::kMostThreads || block.x % emulation::kWarp != 0 || block.y != 1 ||
      block.z != 1 || grid.x == 0 || grid.x > 0x7fffffffu || grid.y == 0 || grid.y > 65535 || grid.z == 0 ||
      grid.z > 65535)
    return cudaErrorInvalidConfiguration;
  const std::string failure =
      emulation::run({grid.x, grid.y, grid.z}, block.x, c->dynamicSmemBytes, [&] { kernel(arguments...); });
  return failure.empty() ? cudaSuccess : cudaErrorLaunchFailure;
}

inline const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorInvalidValue:
      return "invalid argument";
    case cudaErrorInvalidConfiguration:
      return "invalid configuration argument";
    case cudaErrorLaunchFailure:
      return emulation::machine().failure.c_str();
  }
  return "unknown error";
}
