// What the CPU offers: argument structs and the table of entry points that every instruction set fills.
// Sizes and strides are in elements, scratch in bytes. A kernel does the work items [begin, end) it is given,
// on the calling thread, and allocates nothing; the binding owns the parallel loop. An item's result depends
// on the item alone, so the split into ranges, and with it the thread count, never changes a bit.
#pragma once
#include <cstdint>

#include "types.h"

namespace llmcli::cpu {

// Row softmax of scale * x + mask. One item is one row of V elements.
struct SoftmaxArgs {
  const void* x;
  void* y;
  const void* mask;  // null, or additive (dtype of x), or bool when mask_is_bool (false = masked out)
  int64_t size;      // V
  int64_t x_stride;  // between rows
  int64_t y_stride;
  int64_t mask_stride;  // between rows, 0 where all rows share one
  float scale;
  DType dtype;
  bool mask_is_bool;
  bool log;
};

// y = x W^T + bias on packed weights. Items: panels of 64 columns × blocks of 48 rows, panel-major.
struct LinearArgs {
  const void* x;     // (rows, inputs), rows x_stride apart
  const void* w;     // packed, see linear.h
  const void* bias;  // null or (outputs)
  void* y;           // (rows, outputs), rows y_stride apart
  int64_t rows, inputs, outputs;
  int64_t x_stride, y_stride;
  DType dtype;
};

// Packs w (outputs, inputs). One item is one panel of 64 columns.
struct LinearPackArgs {
  const void* w;
  void* packed;
  int64_t inputs, outputs;
  int64_t w_stride;
  DType dtype;
};

struct Kernels {
  const char* isa;
  int lanes;  // floats in one vector
  void (*softmax)(const SoftmaxArgs& args, int64_t begin, int64_t end);
  void (*linear)(const LinearArgs& args, int64_t begin, int64_t end);
  void (*linear_pack)(const LinearPackArgs& args, int64_t begin, int64_t end);
};

// One table per instruction set that this binary holds and this CPU runs, best first.
const Kernels* const* available(int* count);
const Kernels& active();
bool activate(const char* isa);  // false when it is not available

}  // namespace llmcli::cpu
