// llmcli::matmul on CPU tensors.
#include "product.h"
#include "rows.h"

namespace llmcli {

Tensor product_on_threads(const Matrix& a, const Matrix& b, ScalarType dtype, const Tensor* bias) {
  const int64_t M = a.rows, N = b.columns;
  const int64_t sizes[] = {M, N};
  const Tensor y = empty_cpu(torch::headeronly::IntHeaderOnlyArrayRef(sizes, 2), dtype);
  const Matrix whole{y.mutable_data_ptr(), M, N, N, 1};
  if (M == 0 || N == 0) return y;
  if (dtype != ScalarType::Float) {
    product(whole, a, b, dtype, false, bias);
    return y;
  }
  // An element's order of summation depends on K alone, so the cut may depend on the threads: a piece for
  // each, of the longer side, since each packs what it reads of the other one.
  const int64_t threads = torch::stable::get_num_threads();
  const bool by_rows = M >= N || bias;
  const int64_t unit = by_rows ? 48 : 64, units = ((by_rows ? M : N) + unit - 1) / unit;
  const int64_t step = (units + threads - 1) / threads * unit;
  const auto at = [&](Matrix m, int64_t begin, bool rows) {
    const int64_t stride = rows ? m.row_stride : m.column_stride;
    int64_t& n = rows ? m.rows : m.columns;
    n = n - begin < step ? n - begin : step;
    m.data = static_cast<float*>(m.data) + begin * stride;
    return m;
  };
  each(((by_rows ? M : N) + step - 1) / step, [&](int64_t item) {
    const int64_t begin = item * step;
    product(at(whole, begin, by_rows), by_rows ? at(a, begin, true) : a, by_rows ? b : at(b, begin, false),
            dtype, false, bias);
  });
  return y;
}

namespace {

// a (M, K), b (K, N), any strides → (M, N).
Tensor matmul(const Tensor& a, const Tensor& b) {
  STD_TORCH_CHECK(
      a.dim() == 2 && b.dim() == 2 && a.size(1) == b.size(0) && a.scalar_type() == b.scalar_type(),
      "matmul: expected a (M,K) and b (K,N) of one dtype");
  dtype_of(a, "matmul");
  return product_on_threads(matrix_of(a), matrix_of(b), a.scalar_type());
}

}  // namespace
}  // namespace llmcli

STABLE_TORCH_LIBRARY_IMPL(llmcli, CPU, m) { m.impl("matmul", TORCH_BOX(&llmcli::matmul)); }
