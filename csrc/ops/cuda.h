// What the bindings of CUDA kernels share: the tensor's device and torch's stream there, and errors.
#pragma once
#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include "../cuda/kernels.h"
#include "binding.h"

namespace llmcli {

// launch(stream) on the device of x and the stream that torch uses there; a launch that fails is an
// exception.
template <class Launch>
void on_device_of(const Tensor& x, const char* name, const Launch& launch) {
  const int32_t device = x.get_device_index();
  struct Guard {
    CUDAGuardHandle handle = nullptr;
    ~Guard() { aoti_torch_delete_cuda_guard(handle); }
  } guard;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_create_cuda_guard(device, &guard.handle));
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  const cudaError_t error = launch(static_cast<cudaStream_t>(stream));
  STD_TORCH_CHECK(error == cudaSuccess, name, ": ", cudaGetErrorString(error));
}

// The sum of `rows` rows of partial (float32), `stride` apart from element `first` on, as a tensor (columns).
Tensor column_sum_on_device(const Tensor& partial, int64_t first, int64_t rows, int64_t stride,
                            int64_t columns, ScalarType dtype);

}  // namespace llmcli
