// llmcli::softmax and softmax_out on CPU tensors.
#include <optional>

#include "binding.h"

namespace llmcli {
namespace {

// x and out (..., V); mask has x's shape, bool or x's dtype.
void softmax_out(const Tensor& x, std::optional<Tensor> mask, double scale, bool log, Tensor out) {
  STD_TORCH_CHECK(x.dim() >= 1 && out.is_contiguous(),
                  "softmax: expected at least one dimension and a contiguous out");
  STD_TORCH_CHECK(x.numel() == out.numel() && x.scalar_type() == out.scalar_type(),
                  "softmax: x and out differ in shape or dtype");
  const int64_t V = x.size(x.dim() - 1);
  if (x.numel() == 0) return;
  const Tensor rows = torch::stable::contiguous(x);
  std::optional<Tensor> mask_rows;
  cpu::SoftmaxArgs a{};
  a.x = rows.const_data_ptr();
  a.y = out.mutable_data_ptr();
  a.size = a.x_stride = a.y_stride = V;
  a.scale = static_cast<float>(scale);
  a.dtype = dtype_of(x, "softmax");
  a.log = log;
  if (mask) {
    STD_TORCH_CHECK(mask->numel() == x.numel(), "softmax: mask and x differ in shape");
    a.mask_is_bool = mask->scalar_type() == ScalarType::Bool;
    STD_TORCH_CHECK(a.mask_is_bool || mask->scalar_type() == x.scalar_type(),
                    "softmax: expected mask of bool or of x's dtype");
    mask_rows = torch::stable::contiguous(*mask);
    a.mask = mask_rows->const_data_ptr();
    a.mask_stride = V;
  }
  const auto kernel = cpu::active().softmax;
  parallel(x.numel() / V, static_cast<double>(V) * 0.3,
           [&](int64_t begin, int64_t end) { kernel(a, begin, end); });
}

Tensor softmax(const Tensor& x, std::optional<Tensor> mask, double scale, bool log) {
  Tensor out = torch::stable::new_empty(x, x.sizes());
  softmax_out(x, mask, scale, log, out);
  return out;
}

}  // namespace
}  // namespace llmcli

STABLE_TORCH_LIBRARY_IMPL(llmcli, CPU, m) {
  m.impl("softmax", TORCH_BOX(&llmcli::softmax));
  m.impl("softmax_out", TORCH_BOX(&llmcli::softmax_out));
}
