// llmcli::linear_quantized_pack and llmcli::linear_quantized on CUDA tensors.
#include "linear_quantized.h"

#include "cuda.h"

namespace llmcli {
namespace {

Tensor linear_quantized_pack(const Tensor& weight, const Tensor& scale, int64_t inputs) {
  return quantized_pack_with(
      weight, scale, inputs,
      [&](int64_t bytes) { return torch::stable::new_empty(weight, {bytes}, ScalarType::Byte); },
      [&](const cpu::QuantizedPackArgs& a) {
        on_device_of(weight, "linear_quantized_pack",
                     [&](cudaStream_t stream) { return cuda::linear_quantized_pack(a, stream); });
      });
}

Tensor linear_quantized(const Tensor& x, const Tensor& packed, std::optional<Tensor> bias, int64_t outputs,
                        int64_t bits) {
  return linear_quantized_with(x, packed, bias, outputs, bits, [&](cpu::QuantizedLinearArgs& a) {
    STD_TORCH_CHECK(!a.blocks, "linear_quantized: ggml's blocks run on a CPU");
    const int64_t groups = a.rows * cpu::quantized_groups(a.inputs, a.bits);
    const int64_t bytes = a.rows * cuda::quantized_row(a.inputs);
    const Tensor memory = torch::stable::new_empty(x, {bytes + 8 * groups}, ScalarType::Byte);
    a.q = static_cast<int8_t*>(memory.mutable_data_ptr());
    a.scales = reinterpret_cast<float*>(a.q + bytes);
    a.starts = reinterpret_cast<int32_t*>(a.scales + groups);
    on_device_of(x, "linear_quantized",
                 [&](cudaStream_t stream) { return cuda::linear_quantized(a, stream); });
  });
}

}  // namespace
}  // namespace llmcli

STABLE_TORCH_LIBRARY_IMPL(llmcli, CUDA, m) {
  m.impl("linear_quantized_pack", TORCH_BOX(&llmcli::linear_quantized_pack));
  m.impl("linear_quantized", TORCH_BOX(&llmcli::linear_quantized));
}
