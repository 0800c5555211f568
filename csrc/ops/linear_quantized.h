// What the bindings of linear layers of 8 and 4 bits share: checks, and the argument structs.
#pragma once
#include <optional>
#include <vector>

#include "rows.h"

namespace llmcli {

inline int64_t quantized_panels(int64_t outputs) {
  return (outputs + cpu::kQuantizedPanel - 1) / cpu::kQuantizedPanel;
}
inline int64_t quantized_bytes(int64_t outputs, int64_t inputs, int bits, bool blocks = false) {
  return quantized_panels(outputs) * cpu::quantized_panel_bytes(inputs, bits, blocks);
}

// weight int8 (N, K) or uint8 (N, ceil(K / 2)), scale bfloat16 (N, groups) → packed, one dimension.
// make(bytes) allocates it, run(args) fills it.
template <class Make, class Run>
Tensor quantized_pack_with(const Tensor& weight, const Tensor& scale, int64_t inputs, const Make& make,
                           const Run& run) {
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
  Tensor packed = make(quantized_bytes(a.outputs, inputs, a.bits));
  a.w = w.const_data_ptr();
  a.scale = static_cast<const cpu::bf16*>(scales.const_data_ptr());
  a.packed = static_cast<uint8_t*>(packed.mutable_data_ptr());
  if (packed.numel() > 0) run(a);
  return packed;
}

// x (..., K), packed of (N, K), bias (N) → (..., N). run(args) does it, all but q, scales and starts set.
template <class Run>
Tensor linear_quantized_with(const Tensor& x, const Tensor& packed, const std::optional<Tensor>& bias,
                             int64_t outputs, int64_t bits, const Run& run) {
  STD_TORCH_CHECK(x.dim() >= 1 && outputs >= 0 && (bits == 8 || bits == 4),
                  "linear_quantized: expected x (..., K) and 8 or 4 bits");
  cpu::QuantizedLinearArgs a{};
  a.dtype = dtype_of(x, "linear_quantized");
  a.bits = static_cast<int>(bits);
  a.inputs = x.size(x.dim() - 1);
  a.outputs = outputs;
  a.blocks = packed.scalar_type() == ScalarType::Char;
  STD_TORCH_CHECK((a.blocks || packed.scalar_type() == ScalarType::Byte) && packed.is_contiguous() &&
                      packed.numel() == quantized_bytes(outputs, a.inputs, a.bits, a.blocks),
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
  run(a);
  return y;
}

}  // namespace llmcli
