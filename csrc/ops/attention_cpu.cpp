// llmcli::attention on CPU tensors.
#include <algorithm>
#include <memory>
#include <optional>
#include <tuple>

#include "binding.h"

namespace llmcli {
namespace {

// The tensor itself when its last dimension is contiguous, else a copy.
Tensor rows_of(const Tensor& x) {
  return x.size(3) == 1 || x.stride(3) == 1 ? x : torch::stable::contiguous(x);
}

// Nanoseconds that one key/value head's tile takes over `keys` keys: reading them, and the products.
double tile_cost(const cpu::AttentionArgs& a, int64_t keys) {
  const double rows = static_cast<double>(std::min(a.T * (a.H / a.G), cpu::kAttentionRows));
  return static_cast<double>(keys) * static_cast<double>(a.D) * (0.3 + rows * 0.04);
}

// A few rows over many keys leave threads idle when an item is a whole tile: then an item is one block of one
// tile. Worked example: one query of 12 heads over 8,192 keys is 12 items whole, 768 items split.
bool worth_splitting(const cpu::AttentionArgs& a, double cost) {
  const int64_t threads = torch::stable::get_num_threads(), items = a.B * a.G * cpu::attention_tiles(a);
  return threads > 1 && cpu::attention_tiles(a) == 1 && cpu::attention_blocks(a) > 1 && items < 8 * threads &&
         static_cast<double>(items) * cost > 40000.0;
}

void run(cpu::AttentionArgs& a) {
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

// q (B,T,H,D), k and v (B,S,G,D), bias 4-D and broadcastable to (B,H,T,S), k_lengths (B,) → out (B,T,H,D),
// lse (B,H,T) float32.
std::tuple<Tensor, Tensor> attention(const Tensor& q_, const Tensor& k_, const Tensor& v_,
                                     std::optional<Tensor> bias, std::optional<Tensor> k_lengths,
                                     double scale, bool causal) {
  STD_TORCH_CHECK(q_.dim() == 4 && k_.dim() == 4 && v_.dim() == 4, "attention: expected 4-D q, k and v");
  const Tensor q = rows_of(q_), k = rows_of(k_), v = rows_of(v_);
  cpu::AttentionArgs a{};
  a.dtype = dtype_of(q, "attention");
  STD_TORCH_CHECK(k.scalar_type() == q.scalar_type() && v.scalar_type() == q.scalar_type(),
                  "attention: q, k and v differ in dtype");
  a.B = q.size(0), a.T = q.size(1), a.H = q.size(2), a.D = q.size(3);
  a.S = k.size(1), a.G = k.size(2);
  for (const Tensor* x : {&k, &v})
    STD_TORCH_CHECK(x->size(0) == a.B && x->size(1) == a.S && x->size(2) == a.G && x->size(3) == a.D,
                    "attention: k and v differ from q in batch or head size, or from each other");
  STD_TORCH_CHECK(a.G > 0 && a.H % a.G == 0 && a.D >= 1 && a.D <= 256 && a.S < (int64_t{1} << 31),
                  "attention: expected H % G == 0 and D from 1 to 256");
  Tensor out = torch::stable::new_empty(q, q.sizes());
  Tensor lse = torch::stable::new_empty(q, {a.B, a.H, a.T}, ScalarType::Float);
  if (a.B == 0 || a.T == 0 || a.H == 0) return {out, lse};
  a.q = q.const_data_ptr(), a.q_b = q.stride(0), a.q_t = q.stride(1), a.q_h = q.stride(2);
  a.k = k.const_data_ptr(), a.k_b = k.stride(0), a.k_s = k.stride(1), a.k_g = k.stride(2);
  a.v = v.const_data_ptr(), a.v_b = v.stride(0), a.v_s = v.stride(1), a.v_g = v.stride(2);
  if (bias) {
    STD_TORCH_CHECK(bias->dim() == 4, "attention: expected a 4-D bias");
    const int64_t shape[4] = {a.B, a.H, a.T, a.S};
    int64_t* const strides[4] = {&a.bias_b, &a.bias_h, &a.bias_t, &a.bias_s};
    for (int i = 0; i < 4; ++i) {
      STD_TORCH_CHECK(bias->size(i) == 1 || bias->size(i) == shape[i],
                      "attention: bias does not broadcast to (B,H,T,S)");
      *strides[i] = bias->size(i) == 1 ? 0 : bias->stride(i);
    }
    a.bias = bias->const_data_ptr();
    a.bias_dtype = dtype_of(*bias, "attention: bias");
  }
  if (k_lengths) {
    STD_TORCH_CHECK(k_lengths->dim() == 1 && k_lengths->size(0) == a.B && k_lengths->is_contiguous() &&
                        k_lengths->scalar_type() == ScalarType::Long,
                    "attention: expected contiguous int64 k_lengths (B,)");
    a.k_lengths = static_cast<const int64_t*>(k_lengths->const_data_ptr());
    for (int64_t b = 0; b < a.B; ++b)
      STD_TORCH_CHECK(a.k_lengths[b] >= 0 && a.k_lengths[b] <= a.S,
                      "attention: expected k_lengths from 0 to ", a.S, ", got ", a.k_lengths[b]);
  }
  a.scale = static_cast<float>(scale);
  a.causal = causal;
  a.out = out.mutable_data_ptr();
  a.lse = static_cast<float*>(lse.mutable_data_ptr());
  run(a);
  return {out, lse};
}

}  // namespace
}  // namespace llmcli

STABLE_TORCH_LIBRARY_IMPL(llmcli, CPU, m) { m.impl("attention", TORCH_BOX(&llmcli::attention)); }
