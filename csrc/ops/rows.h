// What the bindings of row-wise operators share: the layout of rows, output tensors, scratch rows.
#pragma once
#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <memory>
#include <optional>
#include <vector>

#include "binding.h"

namespace llmcli {

// The sizes and strides above the last dimension with nested ones merged; false where the last dimension is
// not contiguous or more than kMaxDims remain.
inline bool row_layout(const Tensor& x, cpu::Rows* rows) {
  const auto sizes = x.sizes(), strides = x.strides();
  const size_t last = sizes.size() - 1;
  rows->dims = 1;
  rows->size[0] = 1;
  rows->stride[0] = 0;
  if (sizes[last] > 1 && strides[last] != 1) return false;
  for (size_t d = 0; d < last; ++d) {
    if (sizes[d] == 1) continue;
    int64_t& size = rows->size[rows->dims - 1];
    int64_t& stride = rows->stride[rows->dims - 1];
    if (size == 1 || stride == sizes[d] * strides[d]) {
      size *= sizes[d];
      stride = strides[d];
    } else {
      if (rows->dims == cpu::Rows::kMaxDims) return false;
      rows->size[rows->dims] = sizes[d];
      rows->stride[rows->dims++] = strides[d];
    }
  }
  return true;
}

inline cpu::Rows dense_rows(int64_t rows, int64_t stride) {
  cpu::Rows r{};
  r.dims = 1;
  r.size[0] = rows;
  r.stride[0] = stride;
  return r;
}

// A tensor as rows, copied only where its layout has no rows.
class RowTensor {
 public:
  explicit RowTensor(const Tensor& x) : tensor_(x) {
    if (!row_layout(tensor_, &layout_)) {
      tensor_ = torch::stable::contiguous(tensor_);
      row_layout(tensor_, &layout_);
    }
  }
  const void* data() const { return tensor_.const_data_ptr(); }
  const cpu::Rows& layout() const { return layout_; }

 private:
  Tensor tensor_;
  cpu::Rows layout_{};
};

// An uninitialised contiguous CPU tensor. Large ones ask for huge pages: the kernel then zeroes 2 MiB per
// page fault instead of 4 KiB, and faults cost more than the arithmetic that follows.
template <class Sizes>
Tensor empty_cpu(const Sizes& sizes, ScalarType dtype) {
  constexpr size_t kMaxDims = 64;
  int64_t strides[kMaxDims];
  STD_TORCH_CHECK(sizes.size() <= kMaxDims, "expected at most 64 dimensions");
  int64_t count = 1;
  for (size_t d = sizes.size(); d-- > 0;) {
    strides[d] = count;
    count *= sizes[d] > 1 ? sizes[d] : 1;
  }
  AtenTensorHandle handle;
  STABLE_TORCH_ERROR_CODE_CHECK(
      aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.data(), strides,
                               torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype)),
                               aoti_torch_device_type_cpu(), 0, &handle));
  Tensor y(handle);
#if defined(__linux__)
  constexpr uintptr_t kHuge = uintptr_t{1} << 21;
  const uintptr_t size = dtype == ScalarType::Float                               ? 4
                         : dtype == ScalarType::Byte || dtype == ScalarType::Char ? 1
                                                                                  : 2;
  const uintptr_t bytes = static_cast<uintptr_t>(count) * size;
  if (bytes >= 2 * kHuge) {
    const uintptr_t begin = reinterpret_cast<uintptr_t>(y.mutable_data_ptr());
    const uintptr_t first = (begin + kHuge - 1) / kHuge * kHuge, last = (begin + bytes) / kHuge * kHuge;
    madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);  // a hint: failing changes nothing
  }
#endif
  return y;
}

inline int64_t row_count(const Tensor& x) {
  const int64_t size = x.size(x.dim() - 1);
  return size == 0 ? 0 : x.numel() / size;
}

// A row of floats that belongs to the calling thread and stays allocated.
inline float* scratch_row(int64_t size) {
  thread_local std::unique_ptr<float[]> row;
  thread_local int64_t capacity = 0;
  if (capacity < size) {
    row.reset(new float[static_cast<size_t>(size)]);
    capacity = size;
  }
  return row.get();
}

inline int64_t blocks_of(int64_t rows) { return (rows + cpu::kRowBlock - 1) / cpu::kRowBlock; }

// The sum of `rows` rows of partial sums, `stride` apart, as a tensor (columns).
inline Tensor column_sum(const float* partial, int64_t rows, int64_t stride, int64_t columns,
                         ScalarType dtype) {
  const int64_t sizes[] = {columns};
  Tensor y = empty_cpu(torch::headeronly::IntHeaderOnlyArrayRef(sizes, 1), dtype);
  cpu::ColumnSumArgs a{};
  a.x = partial;
  a.y = y.mutable_data_ptr();
  a.rows = rows;
  a.columns = columns;
  a.stride = stride;
  a.dtype = dtype_of(y, "column_sum");
  const auto kernel = cpu::active().column_sum;
  parallel((columns + cpu::kColumnGroup - 1) / cpu::kColumnGroup,
           static_cast<double>(rows * cpu::kColumnGroup) * 0.1,
           [&](int64_t begin, int64_t end) { kernel(a, begin, end); });
  return y;
}

inline Tensor no_gradient(ScalarType dtype) { return column_sum(nullptr, 0, 0, 0, dtype); }

}  // namespace llmcli
