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

// A tensor's rows along its last dimension as one matrix; of two dimensions with any strides, else
// contiguous.
inline Matrix matrix_of(const Tensor& x) {
  void* const data = const_cast<void*>(x.const_data_ptr());
  if (x.dim() == 2) return {data, x.size(0), x.size(1), x.stride(0), x.stride(1)};
  const int64_t columns = x.size(x.dim() - 1);
  return {data, columns == 0 ? 0 : x.numel() / columns, columns, columns, 1};
}

// c = a b, or c + a b with `add`, or a b + bias where there is one; the rows of c are contiguous. torch's
// products start no threads where there is one, or inside a parallel region.
inline void product(const Matrix& c, const Matrix& a, const Matrix& b, ScalarType dtype, bool add,
                    const Tensor* bias = nullptr) {
  if (dtype != ScalarType::Float) {
    const Tensor left = tensor_of(a, dtype), right = tensor_of(b, dtype), out = tensor_of(c, dtype);
    STABLE_TORCH_ERROR_CODE_CHECK(add || bias
                                      ? aoti_torch_cpu_addmm_out(out.get(), add ? out.get() : bias->get(),
                                                                 left.get(), right.get(), 1.0, 1.0)
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
  g.bias = bias ? static_cast<const float*>(bias->const_data_ptr()) : nullptr;
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

// The same on torch's threads, into a tensor of its own: a (M, K), b (K, N), bias (N) contiguous, or none.
Tensor product_on_threads(const Matrix& a, const Matrix& b, ScalarType dtype, const Tensor* bias = nullptr);

}  // namespace llmcli
