// llmcli::attention on CPU tensors.
#include "attention.h"

#include "operators_cpu.h"

namespace llmcli {
namespace {

void check_lengths(const cpu::AttentionArgs& a) {
  for (int64_t b = 0; a.k_lengths && b < a.B; ++b)
    STD_TORCH_CHECK(a.k_lengths[b] >= 0 && a.k_lengths[b] <= a.S, "attention: expected k_lengths from 0 to ",
                    a.S, ", got ", a.k_lengths[b]);
}

}  // namespace

std::tuple<Tensor, Tensor> attention(const Tensor& q, const Tensor& k, const Tensor& v,
                                     std::optional<Tensor> bias, std::optional<Tensor> k_lengths,
                                     double scale, double cap, bool causal) {
  return attention_with(q, k, v, bias, k_lengths, scale, cap, causal, [](cpu::AttentionArgs& a) {
    check_lengths(a);
    run_attention(a);
  });
}

std::tuple<Tensor, Tensor, Tensor, Tensor> attention_backward(const Tensor& grad, const Tensor& q,
                                                              const Tensor& k, const Tensor& v,
                                                              const Tensor& out, const Tensor& lse,
                                                              std::optional<Tensor> bias,
                                                              std::optional<Tensor> k_lengths, double scale,
                                                              double cap, bool causal, bool bias_grad) {
  return attention_backward_with(grad, q, k, v, out, lse, bias, k_lengths, scale, cap, causal, bias_grad,
                                 [](const cpu::AttentionBackwardArgs& a) {
                                   check_lengths(a);
                                   const cpu::Kernels& kernels = cpu::active();
                                   const int64_t bytes = kernels.attention_backward_scratch(a);
                                   const double cost =
                                       static_cast<double>(a.T * (a.H / a.G) * a.S * a.D) * 0.1;
                                   parallel(a.B * a.G, cost, [&](int64_t begin, int64_t end) {
                                     kernels.attention_backward(a, begin, end, scratch(bytes));
                                   });
                                 });
}

}  // namespace llmcli

STABLE_TORCH_LIBRARY_IMPL(llmcli, CPU, m) {
  m.impl("attention", TORCH_BOX(&llmcli::attention));
  m.impl("attention_backward", TORCH_BOX(&llmcli::attention_backward));
}
