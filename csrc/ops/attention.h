// What the bindings of attention share: the arguments, and on the CPU the passes over threads.
#pragma once
#include <algorithm>
#include <memory>
#include <optional>
#include <tuple>

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

// Everything but results and dtype checks of bias: q (B,T,H,D), k and v (B,S,G,D), their last dimensions
// contiguous.
inline void describe(cpu::AttentionArgs& a, const Tensor& q, const Tensor& k, const Tensor& v,
                     const std::optional<Tensor>& bias, const std::optional<Tensor>& k_lengths, double scale,
                     double cap, bool causal) {
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
  a.q = q.const_data_ptr(), a.q_b = q.stride(0), a.q_t = q.stride(1), a.q_h = q.stride(2);
  a.k = k.const_data_ptr(), a.k_b = k.stride(0), a.k_s = k.stride(1), a.k_g = k.stride(2);
  a.v = v.const_data_ptr(), a.v_b = v.stride(0), a.v_s = v.stride(1), a.v_g = v.stride(2);
  if (bias) describe_bias(a, *bias);
  if (k_lengths) {
    STD_TORCH_CHECK(k_lengths->dim() == 1 && k_lengths->size(0) == a.B && k_lengths->is_contiguous() &&
                        k_lengths->scalar_type() == ScalarType::Long,
                    "attention: expected contiguous int64 k_lengths (B,)");
    a.k_lengths = static_cast<const int64_t*>(k_lengths->const_data_ptr());
  }
  a.scale = static_cast<float>(scale);
  a.cap = static_cast<float>(cap);
  a.causal = causal;
}

// Bias (4-D) broadcasts to (B,H,T,S); k_lengths (B,) → out (B,T,H,D), lse (B,H,T) float32, by run(args).
template <class Run>
std::tuple<Tensor, Tensor> attention_with(const Tensor& q_, const Tensor& k_, const Tensor& v_,
                                          const std::optional<Tensor>& bias,
                                          const std::optional<Tensor>& k_lengths, double scale, double cap,
                                          bool causal, const Run& run) {
  STD_TORCH_CHECK(q_.dim() == 4 && k_.dim() == 4 && v_.dim() == 4, "attention: expected 4-D q, k and v");
  const Tensor q = rows_of(q_), k = rows_of(k_), v = rows_of(v_);
  cpu::AttentionArgs a{};
  describe(a, q, k, v, bias, k_lengths, scale, cap, causal);
  Tensor out = torch::stable::new_empty(q, q.sizes());
  Tensor lse = torch::stable::new_empty(q, {a.B, a.H, a.T}, ScalarType::Float);
  if (out.numel() == 0) return {out, lse};
  a.out = out.mutable_data_ptr();
  a.lse = static_cast<float*>(lse.mutable_data_ptr());
  run(a);
  return {out, lse};
}

// dbias in the shape of bias from the gradient of the scores (B,H,T,S).
inline Tensor sum_to(const Tensor& scores, const Tensor& bias) {
  int64_t dims[4];
  size_t n = 0;
  for (int i = 0; i < 4; ++i)
    if (bias.size(i) == 1 && scores.size(i) != 1) dims[n++] = i;
  const Tensor sum =
      n == 0 ? scores : torch::stable::sum(scores, torch::headeronly::IntHeaderOnlyArrayRef(dims, n), true);
  return torch::stable::to(sum, bias.scalar_type());
}

// grad (B,T,H,D), the forward's inputs and results → dq, dk, dv, and dbias (empty unless bias_grad), by
// run(args).
template <class Run>
std::tuple<Tensor, Tensor, Tensor, Tensor> attention_backward_with(
    const Tensor& grad_, const Tensor& q_, const Tensor& k_, const Tensor& v_, const Tensor& out_,
    const Tensor& lse_, const std::optional<Tensor>& bias, const std::optional<Tensor>& k_lengths,
    double scale, double cap, bool causal, bool bias_grad, const Run& run) {
  STD_TORCH_CHECK(q_.dim() == 4 && k_.dim() == 4 && v_.dim() == 4, "attention: expected 4-D q, k and v");
  const Tensor q = rows_of(q_), k = rows_of(k_), v = rows_of(v_), grad = rows_of(grad_);
  const Tensor out = torch::stable::contiguous(out_), lse = torch::stable::contiguous(lse_);
  cpu::AttentionBackwardArgs a{};
  describe(a, q, k, v, bias, k_lengths, scale, cap, causal);
  STD_TORCH_CHECK(grad.scalar_type() == q.scalar_type() && out.scalar_type() == q.scalar_type() &&
                      lse.scalar_type() == ScalarType::Float && lse.numel() == a.B * a.H * a.T,
                  "attention: grad, out or lse are not those of the forward");
  for (int i = 0; i < 4; ++i)
    STD_TORCH_CHECK(grad.size(i) == q.size(i) && out.size(i) == q.size(i),
                    "attention: grad or out differ from q");
  Tensor dq = torch::stable::new_empty(q, q.sizes());
  Tensor dk = torch::stable::new_empty(k, k.sizes()), dv = torch::stable::new_empty(v, v.sizes());
  const bool wants_bias = bias && bias_grad;
  Tensor scores = wants_bias ? torch::stable::new_zeros(q, {a.B, a.H, a.T, a.S}, ScalarType::Float)
                             : torch::stable::new_empty(q, {0});
  a.grad = grad.const_data_ptr(), a.grad_b = grad.stride(0), a.grad_t = grad.stride(1),
  a.grad_h = grad.stride(2);
  a.out = const_cast<void*>(out.const_data_ptr());
  a.lse = const_cast<float*>(static_cast<const float*>(lse.const_data_ptr()));
  a.dq = dq.mutable_data_ptr(), a.dk = dk.mutable_data_ptr(), a.dv = dv.mutable_data_ptr();
  a.dbias = wants_bias ? static_cast<float*>(scores.mutable_data_ptr()) : nullptr;
  run(a);
  return {dq, dk, dv, wants_bias ? sum_to(scores, *bias) : scores};
}

}  // namespace llmcli
