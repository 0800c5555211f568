// llmcli::linear_blocks_pack on CPU tensors.
#include "linear_quantized.h"
#include "weights.h"

namespace llmcli {
namespace {

// data uint8 (bytes), rows int64 (N), where each row of blocks begins → packed, one dimension, int8.
Tensor linear_blocks_pack(const Tensor& data, const Tensor& rows, int64_t bits, int64_t inputs) {
  STD_TORCH_CHECK(data.scalar_type() == ScalarType::Byte && data.dim() == 1 && data.is_contiguous() &&
                      rows.scalar_type() == ScalarType::Long && rows.dim() == 1 && rows.is_contiguous() &&
                      (bits == 8 || bits == 4) && inputs >= 0 && inputs % 32 == 0,
                  "linear_blocks_pack: expected bytes, rows (N), 8 or 4 bits and a multiple of 32 inputs");
  cpu::BlocksPackArgs a{};
  a.data = static_cast<const uint8_t*>(data.const_data_ptr());
  a.rows = static_cast<const int64_t*>(rows.const_data_ptr());
  a.inputs = inputs;
  a.outputs = rows.numel();
  a.bits = static_cast<int>(bits);
  const int64_t last = data.numel() - inputs / 32 * (2 + 4 * bits);
  for (int64_t i = 0; i < a.outputs; ++i)
    STD_TORCH_CHECK(a.rows[i] >= 0 && a.rows[i] <= last, "linear_blocks_pack: a row begins at ", a.rows[i],
                    " of ", data.numel(), " bytes");
  Tensor packed = empty_weights(quantized_bytes(a.outputs, inputs, a.bits, true), ScalarType::Char);
  a.packed = static_cast<uint8_t*>(packed.mutable_data_ptr());
  const auto kernel = cpu::active().linear_blocks_pack;
  parallel(
      quantized_panels(a.outputs), 0.2 * static_cast<double>(inputs * cpu::kQuantizedPanel),
      [&](int64_t begin, int64_t end) { kernel(a, begin, end); }, kOpening);
  return packed;
}

}  // namespace
}  // namespace llmcli

STABLE_TORCH_LIBRARY_IMPL(llmcli, CPU, m) {
  m.impl("linear_blocks_pack", TORCH_BOX(&llmcli::linear_blocks_pack));
}
