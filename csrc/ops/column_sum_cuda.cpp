// The sum of partial sums on a CUDA device: the last step of the gradients of weights and biases.
#include "cuda.h"

namespace llmcli {

Tensor column_sum_on_device(const Tensor& partial, int64_t first, int64_t rows, int64_t stride,
                            int64_t columns, ScalarType dtype) {
  const Tensor y = torch::stable::new_empty(partial, {columns}, dtype);
  if (columns == 0) return y;
  cpu::ColumnSumArgs a{};
  a.x = static_cast<const float*>(partial.const_data_ptr()) + first;
  a.y = y.mutable_data_ptr();
  a.rows = rows;
  a.columns = columns;
  a.stride = stride;
  a.dtype = dtype_of(y, "column_sum");
  on_device_of(partial, "column_sum", [&](cudaStream_t stream) { return cuda::column_sum(a, stream); });
  return y;
}

}  // namespace llmcli
