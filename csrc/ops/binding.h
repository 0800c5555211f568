// What every binding needs: tensor checks, the parallel loop, and nothing of the maths.
#pragma once
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <atomic>
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
// a thread is woken for no less than `least` of it. Threads take pieces as they come, so that one that lost
// its core holds up a piece and not a share.
template <class F>
void parallel(int64_t items, double cost, const F& f, double least = 20000.0) {
  if (items <= 0) return;
  const int64_t grain = static_cast<int64_t>(least / (cost > 1.0 ? cost : 1.0)) + 1;
  const int64_t threads = std::min<int64_t>(torch::stable::get_num_threads(), (items + grain - 1) / grain);
  if (threads == 1) return f(int64_t{0}, items);
  const int64_t piece = std::max(grain, items / (16 * threads));
  std::atomic<int64_t> next{0};
  torch::stable::parallel_for(0, threads, 1, [&](int64_t, int64_t) {
    for (int64_t begin; (begin = next.fetch_add(piece, std::memory_order_relaxed)) < items;)
      f(begin, std::min(begin + piece, items));
  });
}

// Least work of a thread while a model is opened: many short steps, and on a busy machine the end of each
// would wait for a thread that has no core.
constexpr double kOpening = 2e6;

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
