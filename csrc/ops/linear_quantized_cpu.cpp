// llmcli::linear_quantized_pack and llmcli::linear_quantized on CPU tensors.
#include "linear_quantized.h"

#include "weights.h"

namespace llmcli {
namespace {

Tensor linear_quantized_pack(const Tensor& weight, const Tensor& scale, int64_t inputs) {
  return quantized_pack_with(
      weight, scale, inputs, [](int64_t bytes) { return empty_weights(bytes, ScalarType::Byte); },
      [](const cpu::QuantizedPackArgs& a) {
        const auto kernel = cpu::active().linear_quantized_pack;
        parallel(quantized_panels(a.outputs), static_cast<double>(a.inputs) * cpu::kQuantizedPanel,
                 [&](int64_t begin, int64_t end) { kernel(a, begin, end); });
      });
}

Tensor linear_quantized(const Tensor& x, const Tensor& packed, std::optional<Tensor> bias, int64_t outputs,
                        int64_t bits) {
  return linear_quantized_with(x, packed, bias, outputs, bits, [](cpu::QuantizedLinearArgs& a) {
    // The calling thread's scratch: the others read it while this one waits for them.
    const int64_t groups = cpu::quantized_groups(a.inputs, a.bits, a.blocks);
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
    const double cost = static_cast<double>(a.inputs) * cpu::kQuantizedPanel *
                        (0.04 + 0.004 * static_cast<double>(rows_each));
    parallel(quantized_panels(a.outputs) * blocks, cost,
             [&](int64_t begin, int64_t end) { kernel(a, begin, end); });
  });
}

}  // namespace
}  // namespace llmcli

STABLE_TORCH_LIBRARY_IMPL(llmcli, CPU, m) {
  m.impl("linear_quantized_pack", TORCH_BOX(&llmcli::linear_quantized_pack));
  m.impl("linear_quantized", TORCH_BOX(&llmcli::linear_quantized));
}
