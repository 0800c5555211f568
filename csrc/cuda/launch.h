// From run-time arguments to a kernel on a stream.
#pragma once
#include <cuda_runtime.h>

#include "../cpu/types.h"

namespace llmcli::cuda {

template <class... Parameters, class... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), dim3 grid, int block, size_t shared_bytes,
                   cudaStream_t stream, const Arguments&... arguments) {
  constexpr size_t kGranted = 48 * 1024;  // without being asked for
  if (shared_bytes > kGranted) {
    const cudaError_t error =
        cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                             cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes));
    if (error != cudaSuccess) return error;
  }
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = dim3(static_cast<unsigned>(block));
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  return cudaLaunchKernelEx(&config, kernel, arguments...);
}

// f(element) with a value of the element type.
template <class F>
cudaError_t with_dtype(cpu::DType dtype, const F& f) {
  switch (dtype) {
    case cpu::DType::f32:
      return f(float());
    case cpu::DType::bf16:
      return f(cpu::bf16());
    case cpu::DType::f16:
      return f(cpu::f16());
  }
  return cudaErrorInvalidValue;
}

}  // namespace llmcli::cuda
