// A packed linear layer of any precision as bindings run it: alone, or as one of many in a decoder stack.
#pragma once
#include <optional>

#include "binding.h"

namespace llmcli {

class LinearLayer {
 public:
  static constexpr int64_t kPanel = 64, kRows = 48;  // columns and rows of one item
  static_assert(kPanel == cpu::kQuantizedPanel && kRows == cpu::kQuantizedBlock,
                "one cut for all precisions");

  // packed is linear_pack, linear_quantized_pack or linear_blocks_pack of (outputs, inputs), which its dtype
  // and size tell; bias is null or (outputs), in `dtype`, that of x and y.
  LinearLayer(const Tensor& packed, const Tensor* bias, int64_t inputs, int64_t outputs, ScalarType dtype)
      : inputs_(inputs), outputs_(outputs), dtype_(dtype_of(dtype, "linear")) {
    STD_TORCH_CHECK(outputs >= 0, "linear: expected outputs of 0 or more");
    const bool plain = packed.scalar_type() == dtype;
    const int64_t size = packed.numel();
    blocks_ = packed.scalar_type() == ScalarType::Char;
    // Below five inputs, 8 and 4 bits take the same room.
    if ((blocks_ || packed.scalar_type() == ScalarType::Byte) && inputs > 4)
      bits_ = size == panels(outputs) * cpu::quantized_panel_bytes(inputs, 8, blocks_)   ? 8
              : size == panels(outputs) * cpu::quantized_panel_bytes(inputs, 4, blocks_) ? 4
                                                                                         : 0;
    STD_TORCH_CHECK(packed.is_contiguous() &&
                        (bits_ || (plain && size == panels(outputs) * padded(inputs, dtype_) * kPanel)),
                    "linear: packed weights do not belong to ", outputs, " outputs and ", inputs,
                    " inputs of x's dtype");
    STD_TORCH_CHECK(
        !bias || (bias->numel() == outputs && bias->is_contiguous() && bias->scalar_type() == dtype),
        "linear: expected a contiguous bias of ", outputs, " in x's dtype");
    w_ = packed.const_data_ptr();
    bias_ = bias ? bias->const_data_ptr() : nullptr;
  }

  static int64_t panels(int64_t outputs) { return (outputs + kPanel - 1) / kPanel; }
  static int64_t padded(int64_t inputs, cpu::DType dtype) {
    return dtype == cpu::DType::bf16 ? (inputs + 1) / 2 * 2 : inputs;
  }
  static int64_t blocks(int64_t rows) { return (rows + kRows - 1) / kRows; }

  const void* bias() const { return bias_; }
  int64_t items(int64_t rows) const { return panels(outputs_) * blocks(rows); }
  // Nanoseconds of one item.
  double cost(int64_t rows) const {
    return static_cast<double>(inputs_) * kPanel *
           (0.05 + 0.01 * static_cast<double>(rows < kRows ? rows : kRows));
  }

  // Which part of y an item writes.
  struct Part {
    int64_t column, columns, row, rows;
  };
  Part part(int64_t rows, int64_t item) const {
    const int64_t column = item / blocks(rows) * kPanel, row = item % blocks(rows) * kRows;
    return {column, outputs_ - column < kPanel ? outputs_ - column : kPanel, row,
            rows - row < kRows ? rows - row : kRows};
  }

  // What must be done to x before any of the items, row by row, and the bytes that it needs.
  int64_t preparations(int64_t rows) const { return bits_ ? rows : 0; }
  int64_t room(int64_t rows) const {
    return bits_ ? rows * (8 * cpu::quantized_groups(inputs_, bits_, blocks_) +
                           cpu::quantized_inputs(inputs_, bits_))
                 : 0;
  }
  void prepare(const void* x, int64_t rows, void* room, int64_t begin, int64_t end) const {
    cpu::active().linear_quantized_rows(quantized(x, nullptr, rows, room), begin, end);
  }

  // Items [begin, end) of y = x W^T (+ bias): x (rows, inputs) and y (rows, outputs), both contiguous.
  void run(const void* x, void* y, int64_t rows, void* room, bool with_bias, int64_t begin,
           int64_t end) const {
    if (bits_) {
      cpu::QuantizedLinearArgs a = quantized(x, y, rows, room);
      if (with_bias) a.bias = bias_;
      return cpu::active().linear_quantized(a, begin, end);
    }
    cpu::LinearArgs a{};
    a.x = x;
    a.w = w_;
    a.bias = with_bias ? bias_ : nullptr;
    a.y = y;
    a.rows = rows;
    a.inputs = a.x_stride = inputs_;
    a.outputs = a.y_stride = outputs_;
    a.dtype = dtype_;
    cpu::active().linear(a, begin, end);
  }

  // What `prepare` left in `room`.
  cpu::QuantizedLinearArgs prepared(const void* x, int64_t rows, void* room) const {
    return quantized(x, nullptr, rows, room);
  }

  // y (rows, columns), contiguous, without bias, float32 where it is `wide`: `rows` rows of x from `row` on,
  // at most kRows, and `columns` outputs from `column` on, a multiple of kPanel. `all` rows were prepared in
  // `room`.
  void run_part(const void* x, void* y, bool wide, int64_t all, void* room, int64_t row, int64_t rows,
                int64_t column, int64_t columns) const {
    const int64_t panel = column / kPanel, size = dtype_ == cpu::DType::f32 ? 4 : 2;
    const char* const w = static_cast<const char*>(w_) + panel * panel_bytes();
    if (bits_) {
      const int64_t groups = cpu::quantized_groups(inputs_, bits_, blocks_);
      cpu::QuantizedLinearArgs a = quantized(nullptr, y, all, room);
      a.w = reinterpret_cast<const uint8_t*>(w);
      a.scales += row * groups;
      a.starts += row * groups;
      a.q += row * cpu::quantized_inputs(inputs_, bits_);
      a.rows = rows;
      a.outputs = columns;
      a.wide = wide;
      return cpu::active().linear_quantized(a, 0, panels(columns));
    }
    cpu::LinearArgs a{};
    a.x = static_cast<const char*>(x) + row * inputs_ * size;
    a.w = w;
    a.y = y;
    a.rows = rows;
    a.inputs = a.x_stride = inputs_;
    a.outputs = a.y_stride = columns;
    a.dtype = dtype_;
    a.wide = wide;
    cpu::active().linear(a, 0, panels(columns));
  }

  // Starts loading the n-th 4 KiB of what an item reads of the weights; false where there is no more.
  bool fetch(int64_t rows, int64_t item, int64_t n) const {
    constexpr int64_t kPage = 4096;
    const int64_t bytes = panel_bytes();
    const char* const from = static_cast<const char*>(w_) + item / blocks(rows) * bytes + n * kPage;
    const int64_t left = bytes - n * kPage;
    for (int64_t i = 0; i < kPage && i < left; i += 64) __builtin_prefetch(from + i, 0, 2);
    return left > kPage;
  }

 private:
  int64_t panel_bytes() const {
    return bits_ ? cpu::quantized_panel_bytes(inputs_, bits_, blocks_)
                 : padded(inputs_, dtype_) * kPanel * (dtype_ == cpu::DType::f32 ? 4 : 2);
  }

  cpu::QuantizedLinearArgs quantized(const void* x, void* y, int64_t rows, void* room) const {
    const int64_t groups = cpu::quantized_groups(inputs_, bits_, blocks_);
    cpu::QuantizedLinearArgs a{};
    a.x = x;
    a.w = static_cast<const uint8_t*>(w_);
    a.y = y;
    a.scales = static_cast<float*>(room);
    a.starts = reinterpret_cast<int32_t*>(a.scales + rows * groups);
    a.q = reinterpret_cast<int8_t*>(a.starts + rows * groups);
    a.rows = rows;
    a.inputs = inputs_;
    a.outputs = outputs_;
    a.dtype = dtype_;
    a.bits = bits_;
    a.blocks = blocks_;
    return a;
  }

  const void *w_, *bias_;
  int64_t inputs_, outputs_;
  cpu::DType dtype_;
  int bits_ = 0;         // of a quantised weight
  bool blocks_ = false;  // which is made of ggml's blocks
};

}  // namespace llmcli
