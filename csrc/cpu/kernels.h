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

// Attention: q (B,T,H,D), k and v (B,S,G,D) by strides, last dimension contiguous; out (B,T,H,D) and lse
// (B,H,T) contiguous. See attention.h for passes and items.
struct AttentionArgs {
  const void *q, *k, *v;
  const void* bias;          // null, or additive, (B,H,T,S) by strides of any value
  const int64_t* k_lengths;  // null, or (B,), each in [0, S]
  void* out;
  float* lse;      // log of the sum of exponentials, -inf where a row sees nothing
  float* partial;  // split and merge passes: attention_partial() floats per item of the split pass
  int64_t B, T, S, H, G, D;
  int64_t q_b, q_t, q_h, k_b, k_s, k_g, v_b, v_s, v_g;
  int64_t bias_b, bias_h, bias_t, bias_s;
  float scale;
  bool causal;
  DType dtype, bias_dtype;
};
enum class AttentionPass { whole, split, merge };
constexpr int64_t kAttentionBlock = 128;  // keys; part of the arithmetic, see attention.h
constexpr int64_t kAttentionRows = 48;    // rows of a tile; a multiple of every ISA's register tile
inline int64_t attention_tiles(const AttentionArgs& a) {  // of one key/value head
  return (a.T * (a.H / a.G) + kAttentionRows - 1) / kAttentionRows;
}
inline int64_t attention_blocks(const AttentionArgs& a) {
  return (a.S + kAttentionBlock - 1) / kAttentionBlock;
}
// Floats of one partial result; D is rounded up to 16 lanes, the most of any ISA.
inline int64_t attention_partial(const AttentionArgs& a) {
  const int64_t rows = a.T * (a.H / a.G) < kAttentionRows ? a.T * (a.H / a.G) : kAttentionRows;
  return 2 * kAttentionRows + rows * ((a.D + 15) / 16 * 16);
}

struct Kernels {
  const char* isa;
  int lanes;  // floats in one vector
  void (*softmax)(const SoftmaxArgs& args, int64_t begin, int64_t end);
  void (*linear)(const LinearArgs& args, int64_t begin, int64_t end);
  void (*linear_pack)(const LinearPackArgs& args, int64_t begin, int64_t end);

  void (*attention)(const AttentionArgs& args, AttentionPass pass, int64_t begin, int64_t end, void* scratch);
  int64_t (*attention_scratch)(const AttentionArgs& args);  // bytes, 64-byte aligned, one per thread
};

// One table per instruction set that this binary holds and this CPU runs, best first.
const Kernels* const* available(int* count);
const Kernels& active();
bool activate(const char* isa);  // false when it is not available

}  // namespace llmcli::cpu
