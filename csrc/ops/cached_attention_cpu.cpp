// llmcli::cached_attention on CPU tensors.
#include <vector>

#include "attention.h"
#include "cache.h"

namespace llmcli {
namespace {

// q (B,T,H,D), new k and v (B,T,G,D), one layer of a cache (B,G,blocks,bytes) whose rows hold `lengths`
// positions before; bias (4-D) broadcasts to (B,H,T,S) → (B,T,H,D).
Tensor cached_attention(const Tensor& q_, const Tensor& k_, const Tensor& v_, const Tensor& cache,
                        std::vector<int64_t> lengths, std::optional<Tensor> bias, int64_t type, double scale,
                        double cap) {
  STD_TORCH_CHECK(q_.dim() == 4 && k_.dim() == 4 && v_.dim() == 4,
                  "cached_attention: expected 4-D q, k and v");
  const Tensor q = rows_of(q_), k = rows_of(k_), v = rows_of(v_);
  cpu::AttentionArgs a{};
  a.dtype = dtype_of(q, "cached_attention");
  STD_TORCH_CHECK(k.scalar_type() == q.scalar_type() && v.scalar_type() == q.scalar_type(),
                  "cached_attention: q, k and v differ in dtype");
  a.B = q.size(0), a.T = q.size(1), a.H = q.size(2), a.D = q.size(3), a.G = k.size(2);
  for (const Tensor* x : {&k, &v})
    STD_TORCH_CHECK(
        x->size(0) == a.B && x->size(1) == a.T && x->size(2) == a.G && x->size(3) == a.D,
        "cached_attention: k and v differ from q in batch, length or head size, or from each other");
  STD_TORCH_CHECK(a.G > 0 && a.H % a.G == 0 && a.D >= 1 && a.D <= 256,
                  "cached_attention: expected H % G == 0 and D from 1 to 256");
  STD_TORCH_CHECK(cache.dim() == 4, "cached_attention: expected a cache (B,G,blocks,bytes)");
  describe_cache(a, cache, 0, type, lengths, "cached_attention");
  a.q = q.const_data_ptr(), a.q_b = q.stride(0), a.q_t = q.stride(1), a.q_h = q.stride(2);
  a.k = k.const_data_ptr(), a.k_b = k.stride(0), a.k_s = k.stride(1), a.k_g = k.stride(2);
  a.v = v.const_data_ptr(), a.v_b = v.stride(0), a.v_s = v.stride(1), a.v_g = v.stride(2);
  if (bias) describe_bias(a, *bias);
  a.k_lengths = lengths.data();
  a.scale = static_cast<float>(scale);
  a.cap = static_cast<float>(cap);
  a.causal = true;
  Tensor out = torch::stable::new_empty(q, q.sizes());
  if (out.numel() == 0) return out;
  const std::unique_ptr<float[]> lse(new float[static_cast<size_t>(a.B * a.H * a.T)]);
  a.out = out.mutable_data_ptr();
  a.lse = lse.get();
  const auto store = cpu::active().cache_store;
  parallel(a.B * a.G, 2.0 * static_cast<double>(a.T * a.D),
           [&](int64_t begin, int64_t end) { store(a, begin, end, 0, a.S); });
  run_attention(a);
  return out;
}

}  // namespace
}  // namespace llmcli

STABLE_TORCH_LIBRARY_IMPL(llmcli, CPU, m) {
  m.impl("cached_attention", TORCH_BOX(&llmcli::cached_attention));
}
