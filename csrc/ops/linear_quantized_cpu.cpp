// llmcli::linear_quantized_pack and llmcli::linear_quantized on CPU tensors.
#include <optional>
#include <vector>

#include "weights.h"

namespace llmcli {
namespace {

int64_t panels_of(int64_t outputs) { return (outputs + cpu::kQuantizedPanel - 1) / cpu::kQuantizedPanel; }
int64_t packed_bytes(int64_t outputs, int64_t inputs, int bits) {
  return panels_of(outputs) * cpu::quantized_panel_bytes(inputs, bits);
}

// weight int8 (N, K) or uint8 (N, ceil(K / 2)), scale bfloat16 (N, groups) → packed, one dimension.
Tensor linear_quantized_pack(const Tensor& weight, const Tensor& scale, int64_t inputs) {
  cpu::QuantizedPackArgs a{};
  a.bits = weight.scalar_type() == ScalarType::Char ? 8 : 4;
  STD_TORCH_CHECK(
      weight.dim() == 2 && inputs >= 0 &&
          (weight.scalar_type() == ScalarType::Char || weight.scalar_type() == ScalarType::Byte) &&
          weight.size(1) == (a.bits == 8 ? inputs : (inputs + 1) / 2),
      "linear_quantized_pack: expected weight int8 (N, K) or uint8 (N, ceil(K / 2))");
  a.inputs = inputs;
  a.outputs = weight.size(0);
  STD_TORCH_CHECK(scale.scalar_type() == ScalarType::BFloat16 && scale.dim() == 2 &&
                      scale.size(0) == a.outputs && scale.size(1) == cpu::quantized_groups(inputs, a.bits),
                  "linear_quantized_pack: expected scale bfloat16 (N, groups)");
  const Tensor w = torch::stable::contiguous(weight), scales = torch::stable::contiguous(scale);
  Tensor packed = empty_weights(packed_bytes(a.outputs, inputs, a.bits), ScalarType::Byte);
  a.w = w.const_data_ptr();
  a.scale = static_cast<const cpu::bf16*>(scales.const_data_ptr());
  a.packed = static_cast<uint8_t*>(packed.mutable_data_ptr());
  const auto kernel = cpu::active().linear_quantized_pack;
  parallel(panels_of(a.outputs), static_cast<double>(inputs) * cpu::kQuantizedPanel,
           [&](int64_t begin, int64_t end) { kernel(a, begin, end); });
  return packed;
}

// x (..., K), packed of (N, K), bias (N) → (..., N).
Tensor linear_quantized(const Tensor& x, const Tensor& packed, std::optional<Tensor> bias, int64_t outputs,
                        int64_t bits) {
  STD_TORCH_CHECK(x.dim() >= 1 && outputs >= 0 && (bits == 8 || bits == 4),
                  "linear_quantized: expected x (..., K) and 8 or 4 bits");
  cpu::QuantizedLinearArgs a{};
  a.dtype = dtype_of(x, "linear_quantized");
  a.bits = static_cast<int>(bits);
  a.inputs = x.size(x.dim() - 1);
  a.outputs = outputs;
  STD_TORCH_CHECK(packed.scalar_type() == ScalarType::Byte && packed.is_contiguous() &&
                      packed.numel() == packed_bytes(outputs, a.inputs, a.bits),
                  "linear_quantized: packed weights do not belong to ", outputs, " outputs and ", a.inputs,
                  " inputs of ", bits, " bits");
  STD_TORCH_CHECK(
      !bias || (bias->numel() == outputs && bias->is_contiguous() && bias->scalar_type() == x.scalar_type()),
      "linear_quantized: expected a contiguous bias of ", outputs, " in x's dtype");
  std::vector<int64_t> sizes(x.sizes().begin(), x.sizes().end());
  sizes.back() = outputs;
  Tensor y = torch::stable::new_empty(x, sizes);
  const Tensor rows = x.is_contiguous() ? x : torch::stable::contiguous(x);
  a.rows = 1;
  for (int64_t i = 0; i + 1 < x.dim(); ++i) a.rows *= x.size(i);
  if (a.rows == 0 || outputs == 0) return y;
  a.x = rows.const_data_ptr();
  a.w = static_cast<const uint8_t*>(packed.const_data_ptr());
  a.bias = bias ? bias->const_data_ptr() : nullptr;
  a.y = y.mutable_data_ptr();
  // The calling thread's scratch: the others read it while this one waits for them.
  const int64_t groups = cpu::quantized_groups(a.inputs, a.bits);
  const int64_t padded = cpu::quantized_inputs(a.inputs, a.bits);
  a.scales = static_cast<float*>(scratch(a.rows * (8 * groups + padded)));
  a.starts = reinterpret_cast<int32_t*>(a.scales + a.rows * groups);
  a.q = reinterpret_cast<int8_t*>(a.starts + a.rows * groups);
  const auto quantize = cpu::active().linear_quantized_rows;
  parallel(a.rows, 0.1 * static_cast<double>(a.inputs),
           [&](int64_t begin, int64_t end) { quantize(a, begin, end); });
  const auto kernel = cpu::active().linear_quantized;
  const int64_t blocks = (a.rows + cpu::kQuantizedBlock - 1) / cpu::kQuantizedBlock;
  const int64_t rows_each = a.rows < cpu::kQuantizedBlock ? a.rows : cpu::kQuantizedBlock;
  const double cost =
      static_cast<double>(a.inputs) * cpu::kQuantizedPanel * (0.04 + 0.004 * static_cast<double>(rows_each));
  parallel(panels_of(outputs) * blocks, cost, [&](int64_t begin, int64_t end) { kernel(a, begin, end); });
  return y;
}

}  // namespace
}  // namespace llmcli

STABLE_TORCH_LIBRARY_IMPL(llmcli, CPU, m) {
  m.impl("linear_quantized_pack", TORCH_BOX(&llmcli::linear_quantized_pack));
  m.impl("linear_quantized", TORCH_BOX(&llmcli::linear_quantized));
}
