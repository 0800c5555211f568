// What matrix tiles serve, and the table made of it: bfloat16 attention and linear layers, linear layers on
// weights of 8 or 4 bits. All else is avx512bf16's, compiled once. Include last, after one of tiles_native.h
// and tiles_emulated.h.
#pragma once
#include "linear.h"
#include "tile.h"
#include "tile_bf16.h"
#include "tile_amx.h"
#include "attention.h"
#include "attention_backward.h"
#include "linear_amx.h"
#include "linear_quantized.h"
#include "linear_quantized_amx.h"

namespace llmcli::cpu {
namespace avx512bf16 {
extern const Kernels table;
}
namespace LLMCLI_ISA {

namespace others = avx512bf16;

void tiled_linear(const LinearArgs& a, int64_t begin, int64_t end) {
  a.dtype == DType::bf16 ? linear_tiles(a, begin, end) : others::table.linear(a, begin, end);
}
void tiled_linear_quantized(const QuantizedLinearArgs& a, int64_t begin, int64_t end) {
  a.rows > kQuantizedFew ? linear_quantized_tiles(a, begin, end)
                         : others::table.linear_quantized(a, begin, end);
}
void tiled_attention(const AttentionArgs& a, AttentionPass pass, int64_t begin, int64_t end, void* scratch) {
  a.dtype == DType::bf16 ? attention_pass<bf16>(a, pass, begin, end, scratch)
                         : others::table.attention(a, pass, begin, end, scratch);
}
void tiled_attention_backward(const AttentionBackwardArgs& a, int64_t begin, int64_t end, void* scratch) {
  a.dtype == DType::bf16 ? attention_backward_items<bf16>(a, begin, end, scratch)
                         : others::table.attention_backward(a, begin, end, scratch);
}

// Scratch has the layout of BFloat16Product's.
static_assert(TileProduct::kPair == BFloat16Product::kPair, "scratch sizes would differ");

Kernels table() {
  Kernels kernels = others::table;
  kernels.isa = LLMCLI_STRING(LLMCLI_ISA);
  kernels.linear = tiled_linear;
  kernels.linear_quantized = tiled_linear_quantized;
  kernels.attention = tiled_attention;
  kernels.attention_backward = tiled_attention_backward;
  return kernels;
}

}  // namespace LLMCLI_ISA
}  // namespace llmcli::cpu
