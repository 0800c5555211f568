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

struct Kernels {
  const char* isa;
  int lanes;  // floats in one vector
  void (*softmax)(const SoftmaxArgs& args, int64_t begin, int64_t end);
};

// One table per instruction set that this binary holds and this CPU runs, best first.
const Kernels* const* available(int* count);
const Kernels& active();
bool activate(const char* isa);  // false when it is not available

}  // namespace llmcli::cpu
