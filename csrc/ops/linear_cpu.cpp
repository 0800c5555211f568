// llmcli::linear_pack and llmcli::linear on CPU tensors.
#include <vector>

#include "linear.h"
#include "weights.h"

namespace llmcli {
namespace {

// weight (N, K) → packed, one dimension.
Tensor linear_pack(const Tensor& weight) {
  STD_TORCH_CHECK(weight.dim() == 2, "linear_pack: expected weight (N, K)");
  cpu::LinearPackArgs a{};
  a.dtype = dtype_of(weight, "linear_pack");
  a.outputs = weight.size(0);
  a.inputs = weight.size(1);
  a.w_n = weight.stride(0);
  a.w_k = weight.stride(1);
  const int64_t panels = LinearLayer::panels(a.outputs);
  const int64_t size = panels * LinearLayer::padded(a.inputs, a.dtype) * LinearLayer::kPanel;
  const Tensor packed = empty_weights(size, weight.scalar_type());
  a.w = weight.const_data_ptr();
  a.packed = packed.mutable_data_ptr();
  const auto kernel = cpu::active().linear_pack;
  parallel(
      panels, static_cast<double>(a.inputs) * LinearLayer::kPanel * 0.3,
      [&](int64_t begin, int64_t end) { kernel(a, begin, end); }, kOpening);
  return packed;
}

// x (..., K), packed of (N, K), bias (N) → (..., N).
Tensor linear(const Tensor& x, const Tensor& packed, std::optional<Tensor> bias, int64_t outputs) {
  STD_TORCH_CHECK(x.dim() >= 1, "linear: expected x (..., K)");
  STD_TORCH_CHECK(packed.scalar_type() == x.scalar_type(),
                  "linear: packed weights do not belong to x's dtype");
  const LinearLayer layer(packed, bias ? &*bias : nullptr, x.size(x.dim() - 1), outputs, x.scalar_type());
  std::vector<int64_t> sizes(x.sizes().begin(), x.sizes().end());
  sizes.back() = outputs;
  Tensor y = torch::stable::new_empty(x, sizes);
  const Tensor input = x.is_contiguous() ? x : torch::stable::contiguous(x);
  int64_t rows = 1;
  for (int64_t i = 0; i + 1 < x.dim(); ++i) rows *= x.size(i);
  const void* const from = input.const_data_ptr();
  void* const to = y.mutable_data_ptr();
  parallel(layer.items(rows), layer.cost(rows),
           [&](int64_t begin, int64_t end) { layer.run(from, to, rows, nullptr, true, begin, end); });
  return y;
}

}  // namespace
}  // namespace llmcli

STABLE_TORCH_LIBRARY_IMPL(llmcli, CPU, m) {
  m.impl("linear_pack", TORCH_BOX(&llmcli::linear_pack));
  m.impl("linear", TORCH_BOX(&llmcli::linear));
}
