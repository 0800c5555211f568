// llmcli::quantize on CPU tensors.
#include <tuple>

#include "rows.h"

namespace llmcli {
namespace {

// weight (N, K) → int8 (N, K) or uint8 (N, ceil(K / 2)), and scales, bfloat16 (N, groups).
std::tuple<Tensor, Tensor> quantize(const Tensor& weight, int64_t bits) {
  STD_TORCH_CHECK(weight.dim() == 2 && (bits == 8 || bits == 4),
                  "quantize: expected a weight (N, K) and 8 or 4 bits");
  const Tensor w = weight.size(1) <= 1 || weight.stride(1) == 1 ? weight : torch::stable::contiguous(weight);
  cpu::QuantizeArgs a{};
  a.dtype = dtype_of(w, "quantize");
  a.bits = static_cast<int>(bits);
  a.inputs = w.size(1);
  a.w = w.const_data_ptr();
  a.w_stride = w.stride(0);
  const int64_t rows = w.size(0);
  const int64_t whole[] = {rows, bits == 8 ? a.inputs : (a.inputs + 1) / 2};
  const int64_t scales[] = {rows, cpu::quantized_groups(a.inputs, a.bits)};
  const Tensor q = empty_cpu(torch::headeronly::IntHeaderOnlyArrayRef(whole, 2),
                             bits == 8 ? ScalarType::Char : ScalarType::Byte);
  const Tensor scale = empty_cpu(torch::headeronly::IntHeaderOnlyArrayRef(scales, 2), ScalarType::BFloat16);
  a.q = q.mutable_data_ptr();
  a.scale = static_cast<cpu::bf16*>(scale.mutable_data_ptr());
  const auto kernel = cpu::active().quantize;
  parallel(rows, static_cast<double>(a.inputs), [&](int64_t begin, int64_t end) { kernel(a, begin, end); });
  return {q, scale};
}

}  // namespace
}  // namespace llmcli

STABLE_TORCH_LIBRARY_IMPL(llmcli, CPU, m) { m.impl("quantize", TORCH_BOX(&llmcli::quantize)); }
