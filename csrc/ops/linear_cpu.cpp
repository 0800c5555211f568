// llmcli::linear_pack and llmcli::linear on CPU tensors.
#include <optional>
#include <vector>

#include "binding.h"

namespace llmcli {
namespace {

constexpr int64_t kPanel = 64, kRows = 48;

int64_t panels_of(int64_t outputs) { return (outputs + kPanel - 1) / kPanel; }
int64_t padded(int64_t inputs, cpu::DType dtype) {
  return dtype == cpu::DType::bf16 ? (inputs + 1) / 2 * 2 : inputs;
}

// weight (N, K) → packed, one dimension.
Tensor linear_pack(const Tensor& weight) {
  STD_TORCH_CHECK(weight.dim() == 2, "linear_pack: expected weight (N, K)");
  const Tensor w = weight.size(1) <= 1 || weight.stride(1) == 1 ? weight : torch::stable::contiguous(weight);
  cpu::LinearPackArgs a{};
  a.dtype = dtype_of(w, "linear_pack");
  a.outputs = w.size(0);
  a.inputs = w.size(1);
  a.w_stride = w.stride(0);
  const int64_t panels = panels_of(a.outputs);
  Tensor packed = torch::stable::new_empty(w, {panels * padded(a.inputs, a.dtype) * kPanel});
  a.w = w.const_data_ptr();
  a.packed = packed.mutable_data_ptr();
  const auto kernel = cpu::active().linear_pack;
  parallel(panels, static_cast<double>(a.inputs) * kPanel,
           [&](int64_t begin, int64_t end) { kernel(a, begin, end); });
  return packed;
}

// x (..., K), packed of (N, K), bias (N) → (..., N).
Tensor linear(const Tensor& x, const Tensor& packed, std::optional<Tensor> bias, int64_t outputs) {
  STD_TORCH_CHECK(x.dim() >= 1 && outputs >= 0, "linear: expected x (..., K)");
  cpu::LinearArgs a{};
  a.dtype = dtype_of(x, "linear");
  a.inputs = x.size(x.dim() - 1);
  a.outputs = outputs;
  const int64_t panels = panels_of(outputs);
  STD_TORCH_CHECK(packed.scalar_type() == x.scalar_type() && packed.is_contiguous() &&
                      packed.numel() == panels * padded(a.inputs, a.dtype) * kPanel,
                  "linear: packed weights do not belong to ", outputs, " outputs and ", a.inputs,
                  " inputs of x's dtype");
  STD_TORCH_CHECK(
      !bias || (bias->numel() == outputs && bias->is_contiguous() && bias->scalar_type() == x.scalar_type()),
      "linear: expected a contiguous bias of ", outputs, " in x's dtype");
  std::vector<int64_t> sizes(x.sizes().begin(), x.sizes().end());
  sizes.back() = outputs;
  Tensor y = torch::stable::new_empty(x, sizes);
  const Tensor rows = x.is_contiguous() ? x : torch::stable::contiguous(x);
  a.rows = 1;
  for (int64_t i = 0; i + 1 < x.dim(); ++i) a.rows *= x.size(i);
  if (a.rows == 0 || outputs == 0) return y;
  a.x = rows.const_data_ptr();
  a.w = packed.const_data_ptr();
  a.bias = bias ? bias->const_data_ptr() : nullptr;
  a.y = y.mutable_data_ptr();
  a.x_stride = a.inputs;
  a.y_stride = outputs;
  const auto kernel = cpu::active().linear;
  const int64_t blocks = (a.rows + kRows - 1) / kRows, rows_each = a.rows < kRows ? a.rows : kRows;
  const double cost = static_cast<double>(a.inputs) * kPanel * (0.05 + 0.01 * static_cast<double>(rows_each));
  parallel(panels * blocks, cost, [&](int64_t begin, int64_t end) { kernel(a, begin, end); });
  return y;
}

}  // namespace
}  // namespace llmcli

STABLE_TORCH_LIBRARY_IMPL(llmcli, CPU, m) {
  m.impl("linear_pack", TORCH_BOX(&llmcli::linear_pack));
  m.impl("linear", TORCH_BOX(&llmcli::linear));
}
