// Products of matrices on the calling thread: float32 by our kernel, 16-bit types by torch.
#pragma once
#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>

#include "binding.h"

namespace llmcli {

// A matrix inside some tensor's memory, strides in elements; it owns nothing.
struct Matrix {
  void* data;
  int64_t rows, columns, row_stride, column_stride;
  Matrix turned() const { return {data, columns, rows, column_stride, row_stride}; }
};

inline Tensor tensor_of(const Matrix& m, ScalarType dtype) {
  const int64_t sizes[] = {m.rows, m.columns}, strides[] = {m.row_stride, m.column_stride};
  return torch::stable::from_blob(m.data, torch::headeronly::IntHeaderOnlyArrayRef(sizes, 2),
                                  torch::headeronly::IntHeaderOnlyArrayRef(strides, 2),
                                  torch::stable::Device(torch::headeronly::DeviceType::CPU), dtype);
}

// c = a b, or c + a b with `add`; the rows of c are contiguous. torch's products start no threads where there
// is one, or inside a parallel region.
inline void product(const Matrix& c, const Matrix& a, const Matrix& b, ScalarType dtype, bool add) {
  if (dtype != ScalarType::Float) {
    const Tensor left = tensor_of(a, dtype), right = tensor_of(b, dtype), out = tensor_of(c, dtype);
    STABLE_TORCH_ERROR_CODE_CHECK(
        add ? aoti_torch_cpu_addmm_out(out.get(), out.get(), left.get(), right.get(), 1.0, 1.0)
            : aoti_torch_cpu_mm_out(out.get(), left.get(), right.get()));
    return;
  }
  cpu::MatmulArgs g{};
  g.a = static_cast<const float*>(a.data);
  g.b = static_cast<const float*>(b.data);
  g.c = static_cast<float*>(c.data);
  g.M = c.rows, g.N = c.columns, g.K = a.columns;
  g.a_m = a.row_stride, g.a_k = a.column_stride;
  g.b_k = b.row_stride, g.b_n = b.column_stride;
  g.c_m = c.row_stride;
  g.add = add;
  cpu::active().matmul(g, scratch(cpu::matmul_scratch(g.N)));
}

// f(item) for [0, items), each on one thread: they take items as they come.
template <class F>
void each(int64_t items, const F& f) {
  std::atomic<int64_t> next{0};
  const auto work = [&](int64_t, int64_t) {
    for (int64_t item; (item = next.fetch_add(1, std::memory_order_relaxed)) < items;) f(item);
  };
  const int64_t threads = torch::stable::get_num_threads();
  if (threads == 1) return work(0, 1);
  torch::stable::parallel_for(0, threads, 1, work);
}

}  // namespace llmcli
