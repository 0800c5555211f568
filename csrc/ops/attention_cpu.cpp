// llmcli::attention on CPU tensors.
#include <tuple>

#include "attention.h"

namespace llmcli {
namespace {

// Everything but results and dtype checks of bias: q (B,T,H,D), k and v (B,S,G,D), their last dimensions
// contiguous.
void describe(cpu::AttentionArgs& a, const Tensor& q, const Tensor& k, const Tensor& v,
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
    for (int64_t b = 0; b < a.B; ++b)
      STD_TORCH_CHECK(a.k_lengths[b] >= 0 && a.k_lengths[b] <= a.S,
                      "attention: expected k_lengths from 0 to ", a.S, ", got ", a.k_lengths[b]);
  }
  a.scale = static_cast<float>(scale);
  a.cap = static_cast<float>(cap);
  a.causal = causal;
}

// Bias (4-D) broadcasts to (B,H,T,S); k_lengths (B,) → out (B,T,H,D), lse (B,H,T) float32.
std::tuple<Tensor, Tensor> attention(const Tensor& q_, const Tensor& k_, const Tensor& v_,
                                     std::optional<Tensor> bias, std::optional<Tensor> k_lengths,
                                     double scale, double cap, bool causal) {
  STD_TORCH_CHECK(q_.dim() == 4 && k_.dim() == 4 && v_.dim() == 4, "attention: expected 4-D q, k and v");
  const Tensor q = rows_of(q_), k = rows_of(k_), v = rows_of(v_);
  cpu::AttentionArgs a{};
  describe(a, q, k, v, bias, k_lengths, scale, cap, causal);
  Tensor out = torch::stable::new_empty(q, q.sizes());
  Tensor lse = torch::stable::new_empty(q, {a.B, a.H, a.T}, ScalarType::Float);
  if (out.numel() == 0) return {out, lse};
  a.out = out.mutable_data_ptr();
  a.lse = static_cast<float*>(lse.mutable_data_ptr());
  run_attention(a);
  return {out, lse};
}

// dbias in the shape of bias from the gradient of the scores (B,H,T,S).
Tensor sum_to(const Tensor& scores, const Tensor& bias) {
  int64_t dims[4];
  size_t n = 0;
  for (int i = 0; i < 4; ++i)
    if (bias.size(i) == 1 && scores.size(i) != 1) dims[n++] = i;
  const Tensor sum =
      n == 0 ? scores : torch::stable::sum(scores, torch::headeronly::IntHeaderOnlyArrayRef(dims, n), true);
  return torch::stable::to(sum, bias.scalar_type());
}

// grad (B,T,H,D), the forward's inputs and results → dq, dk, dv, and dbias (empty unless bias_grad).
std::tuple<Tensor, Tensor, Tensor, Tensor> attention_backward(const Tensor& grad_, const Tensor& q_,
                                                              const Tensor& k_, const Tensor& v_,
                                                              const Tensor& out_, const Tensor& lse_,
                                                              std::optional<Tensor> bias,
                                                              std::optional<Tensor> k_lengths, double scale,
                                                              double cap, bool causal, bool bias_grad) {
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
  const cpu::Kernels& kernels = cpu::active();
  const int64_t bytes = kernels.attention_backward_scratch(a);
  const double cost = static_cast<double>(a.T * (a.H / a.G) * a.S * a.D) * 0.1;
  parallel(a.B * a.G, cost,
           [&](int64_t begin, int64_t end) { kernels.attention_backward(a, begin, end, scratch(bytes)); });
  return {dq, dk, dv, wants_bias ? sum_to(scores, *bias) : scores};
}

}  // namespace
}  // namespace llmcli

STABLE_TORCH_LIBRARY_IMPL(llmcli, CPU, m) {
  m.impl("attention", TORCH_BOX(&llmcli::attention));
  m.impl("attention_backward", TORCH_BOX(&llmcli::attention_backward));
}
