// llmcli::argmax on CPU tensors.
#include <tuple>

#include "rows.h"

namespace llmcli {
namespace {

// x (..., V) → where the highest of each row first stands, and itself in float32: (...).
std::tuple<Tensor, Tensor> argmax(const Tensor& x) {
  STD_TORCH_CHECK(x.dim() >= 1 && x.size(x.dim() - 1) > 0, "argmax: expected rows of at least one number");
  const torch::headeronly::IntHeaderOnlyArrayRef sizes(x.sizes().data(), static_cast<size_t>(x.dim() - 1));
  const Tensor index = empty_cpu(sizes, ScalarType::Long), highest = empty_cpu(sizes, ScalarType::Float);
  const RowTensor x_rows(x);
  cpu::ArgmaxArgs a{};
  a.x = x_rows.data();
  a.x_rows = x_rows.layout();
  a.index = static_cast<int64_t*>(index.mutable_data_ptr());
  a.highest = static_cast<float*>(highest.mutable_data_ptr());
  a.size = x.size(x.dim() - 1);
  a.dtype = dtype_of(x, "argmax");
  const auto kernel = cpu::active().argmax;
  parallel(row_count(x), static_cast<double>(a.size) * 0.05,
           [&](int64_t begin, int64_t end) { kernel(a, begin, end); });
  return {index, highest};
}

}  // namespace
}  // namespace llmcli

STABLE_TORCH_LIBRARY_IMPL(llmcli, CPU, m) { m.impl("argmax", TORCH_BOX(&llmcli::argmax)); }
