// What every binding needs: tensor checks, the parallel loop, and nothing of the maths.
#pragma once
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdlib>

#include "../cpu/kernels.h"

namespace llmcli {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline cpu::DType dtype_of(ScalarType dtype, const char* name) {
  switch (dtype) {
    case ScalarType::Float:
      return cpu::DType::f32;
    case ScalarType::BFloat16:
      return cpu::DType::bf16;
    case ScalarType::Half:
      return cpu::DType::f16;
    default:
      STD_TORCH_CHECK(false, name, ": expected float32, bfloat16 or float16");
      return cpu::DType::f32;
  }
}
inline cpu::DType dtype_of(const Tensor& x, const char* name) { return dtype_of(x.scalar_type(), name); }

// Runs f(begin, end) over [0, items) on torch's threads. `cost` is the rough work of one item in nanoseconds:
// a thread is woken for no less than 20 microseconds of work.
template <class F>
void parallel(int64_t items, double cost, const F& f) {
  if (items <= 0) return;
  const int64_t grain = static_cast<int64_t>(20000.0 / (cost > 1.0 ? cost : 1.0)) + 1;
  if (items <= grain || torch::stable::get_num_threads() == 1) {
    f(int64_t{0}, items);
  } else {
    torch::stable::parallel_for(0, items, grain, f);
  }
}

// Working memory of the calling thread, 64-byte aligned, kept between calls; its content is undefined.
inline void* scratch(int64_t bytes) {
  struct Buffer {
    void* data = nullptr;
    int64_t size = 0;
    ~Buffer() { std::free(data); }
  };
  thread_local Buffer buffer;
  if (bytes > buffer.size) {
    std::free(buffer.data);
    buffer.size = 0;
    buffer.data = std::aligned_alloc(64, static_cast<size_t>((bytes + 63) / 64 * 64));
    STD_TORCH_CHECK(buffer.data != nullptr, "out of memory: ", bytes, " bytes of scratch");
    buffer.size = bytes;
  }
  return buffer.data;
}

}  // namespace llmcli
