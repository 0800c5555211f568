// What the bindings of attention share: the bias, and the passes over threads.
#pragma once
#include <algorithm>
#include <memory>
#include <optional>

#include "binding.h"

namespace llmcli {

// The tensor itself when its last dimension is contiguous, else a copy.
inline Tensor rows_of(const Tensor& x) {
  return x.size(3) == 1 || x.stride(3) == 1 ? x : torch::stable::contiguous(x);
}

// Nanoseconds that one key/value head's tile takes over `keys` keys: reading them, and the products.
inline double tile_cost(const cpu::AttentionArgs& a, int64_t keys) {
  const double rows = static_cast<double>(std::min(a.T * (a.H / a.G), cpu::kAttentionRows));
  return static_cast<double>(keys) * static_cast<double>(a.D) * (0.3 + rows * 0.04);
}

// A few rows over many keys leave threads idle when an item is a whole tile: then an item is one block of one
// tile. Worked example: one query of 12 heads over 8,192 keys is 12 items whole, 768 items split. Two threads
// share the 12 well, if each can read a head from end to end: if its keys lie one after the other.
inline bool worth_splitting(const cpu::AttentionArgs& a, double cost) {
  const int64_t threads = torch::stable::get_num_threads(), items = a.B * a.G * cpu::attention_tiles(a);
  const int64_t enough = (a.cache || a.k_s == a.D ? 4 : 8) * threads;
  return threads > 1 && cpu::attention_tiles(a) == 1 && cpu::attention_blocks(a) > 1 && items < enough &&
         static_cast<double>(items) * cost > 40000.0;
}

// Everything is described but `partial`.
inline void run_attention(cpu::AttentionArgs& a) {
  const cpu::Kernels& kernels = cpu::active();
  const int64_t bytes = kernels.attention_scratch(a), tiles = a.B * a.G * cpu::attention_tiles(a);
  const auto pass = [&](cpu::AttentionPass which, int64_t items, double cost) {
    parallel(items, cost,
             [&](int64_t begin, int64_t end) { kernels.attention(a, which, begin, end, scratch(bytes)); });
  };
  const double cost = tile_cost(a, a.S);
  if (!worth_splitting(a, cost)) return pass(cpu::AttentionPass::whole, tiles, cost);
  const int64_t blocks = cpu::attention_blocks(a), items = tiles * blocks;
  const size_t floats = static_cast<size_t>(items * cpu::attention_partial(a));
  const std::unique_ptr<float[]> partial(new float[floats]);
  a.partial = partial.get();
  pass(cpu::AttentionPass::split, items, tile_cost(a, cpu::kAttentionBlock));
  pass(cpu::AttentionPass::merge, tiles, static_cast<double>(cpu::attention_partial(a) * blocks) * 0.2);
}

// A bias that broadcasts to (B,H,T,S).
inline void describe_bias(cpu::AttentionArgs& a, const Tensor& bias) {
  STD_TORCH_CHECK(bias.dim() == 4, "attention: expected a 4-D bias");
  const int64_t shape[4] = {a.B, a.H, a.T, a.S};
  int64_t* const strides[4] = {&a.bias_b, &a.bias_h, &a.bias_t, &a.bias_s};
  for (int i = 0; i < 4; ++i) {
    STD_TORCH_CHECK(bias.size(i) == 1 || bias.size(i) == shape[i],
                    "attention: bias does not broadcast to (B,H,T,S)");
    *strides[i] = bias.size(i) == 1 ? 0 : bias.stride(i);
  }
  a.bias = bias.const_data_ptr();
  a.bias_dtype = dtype_of(bias, "attention: bias");
}

}  // namespace llmcli
