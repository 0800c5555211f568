// A packed linear layer as bindings run it: alone, or as one of many in a decoder stack.
#pragma once
#include <optional>

#include "binding.h"

namespace llmcli {

class LinearLayer {
 public:
  static constexpr int64_t kPanel = 64, kRows = 48;  // columns and rows of one item

  // packed is linear_pack of (outputs, inputs); bias is null or (outputs), both in `dtype`.
  LinearLayer(const Tensor& packed, const Tensor* bias, int64_t inputs, int64_t outputs, ScalarType dtype) {
    STD_TORCH_CHECK(outputs >= 0, "linear: expected outputs of 0 or more");
    args_.dtype = dtype_of(dtype, "linear");
    args_.inputs = inputs;
    args_.outputs = outputs;
    STD_TORCH_CHECK(packed.scalar_type() == dtype && packed.is_contiguous() &&
                        packed.numel() == panels(outputs) * padded(inputs, args_.dtype) * kPanel,
                    "linear: packed weights do not belong to ", outputs, " outputs and ", inputs,
                    " inputs of x's dtype");
    STD_TORCH_CHECK(
        !bias || (bias->numel() == outputs && bias->is_contiguous() && bias->scalar_type() == dtype),
        "linear: expected a contiguous bias of ", outputs, " in x's dtype");
    args_.w = packed.const_data_ptr();
    args_.bias = bias ? bias->const_data_ptr() : nullptr;
  }

  static int64_t panels(int64_t outputs) { return (outputs + kPanel - 1) / kPanel; }
  static int64_t padded(int64_t inputs, cpu::DType dtype) {
    return dtype == cpu::DType::bf16 ? (inputs + 1) / 2 * 2 : inputs;
  }
  static int64_t blocks(int64_t rows) { return (rows + kRows - 1) / kRows; }

  int64_t inputs() const { return args_.inputs; }
  int64_t outputs() const { return args_.outputs; }
  const void* bias() const { return args_.bias; }
  int64_t items(int64_t rows) const { return panels(args_.outputs) * blocks(rows); }
  // Nanoseconds of one item.
  double cost(int64_t rows) const {
    return static_cast<double>(args_.inputs) * kPanel *
           (0.05 + 0.01 * static_cast<double>(rows < kRows ? rows : kRows));
  }

  // Which part of y an item writes.
  struct Part {
    int64_t column, columns, row, rows;
  };
  Part part(int64_t rows, int64_t item) const {
    const int64_t column = item / blocks(rows) * kPanel, row = item % blocks(rows) * kRows;
    return {column, args_.outputs - column < kPanel ? args_.outputs - column : kPanel, row,
            rows - row < kRows ? rows - row : kRows};
  }

  // Items [begin, end) of y = x W^T (+ bias): x (rows, inputs) and y (rows, outputs), both contiguous.
  void run(const void* x, void* y, int64_t rows, bool with_bias, int64_t begin, int64_t end) const {
    cpu::LinearArgs a = args_;
    a.x = x;
    a.y = y;
    a.rows = rows;
    a.x_stride = a.inputs;
    a.y_stride = a.outputs;
    if (!with_bias) a.bias = nullptr;
    cpu::active().linear(a, begin, end);
  }

 private:
  cpu::LinearArgs args_{};
};

}  // namespace llmcli
