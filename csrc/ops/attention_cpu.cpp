// llmcli::attention on CPU tensors.
#include "attention.h"

namespace llmcli {
namespace {

void check_lengths(const cpu::AttentionArgs& a) {
  for (int64_t b = 0; a.k_lengths && b < a.B; ++b)
    STD_TORCH_CHECK(a.k_lengths[b] >= 0 && a.k_lengths[b] <= a.S, "attention: expected k_lengths from 0 to ",
                    a.S, ", got ", a.k_lengths[b]);
}

std::tuple<Tensor, Tensor> attention(const Tensor& q, const Tensor& k, const Tensor& v,
                                     std::optional<Tensor> bias, std::optional<Tensor> k_lengths,
                                     double scale, double cap, bool causal) {
  return attention_with(q, k, v, bias, k_lengths, scale, cap, causal, [](cpu::AttentionArgs& a) {
    check_lengths(a);
    run_attention(a);
  });
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
  check_lengths(a);
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
