// llmcli::blocks on CPU tensors.
#include "rows.h"

namespace llmcli {
namespace {

// data (bytes) of whole blocks → the numbers of `like`'s dtype, one dimension.
Tensor blocks(const Tensor& data, int64_t kind, ScalarType dtype) {
  STD_TORCH_CHECK(kind >= 0 && kind <= static_cast<int64_t>(cpu::BlockKind::q6_k), "blocks: unknown kind");
  cpu::BlocksArgs a{};
  a.kind = static_cast<cpu::BlockKind>(kind);
  const int64_t size = cpu::block_bytes(a.kind);
  STD_TORCH_CHECK(data.scalar_type() == ScalarType::Byte && data.is_contiguous() && data.numel() % size == 0,
                  "blocks: expected contiguous bytes, a multiple of ", size);
  a.blocks = data.numel() / size;
  a.dtype = dtype_of(dtype, "blocks");
  a.data = static_cast<const uint8_t*>(data.const_data_ptr());
  const int64_t numbers[] = {a.blocks * cpu::block_weights(a.kind)};
  const Tensor y = empty_cpu(torch::headeronly::IntHeaderOnlyArrayRef(numbers, 1), dtype);
  a.y = y.mutable_data_ptr();
  const auto kernel = cpu::active().blocks;
  parallel((a.blocks + cpu::kBlocksTogether - 1) / cpu::kBlocksTogether,
           static_cast<double>(cpu::kBlocksTogether * cpu::block_weights(a.kind)) * 0.7,
           [&](int64_t begin, int64_t end) { kernel(a, begin, end); }, kOpening);
  return y;
}

}  // namespace
}  // namespace llmcli

STABLE_TORCH_LIBRARY_IMPL(llmcli, CPU, m) { m.impl("blocks", TORCH_BOX(&llmcli::blocks)); }
