// llmcli::attention and its gradients on CUDA tensors.
#include "attention.h"
#include "cuda.h"

namespace llmcli {
namespace {

void check_rows(const cpu::AttentionArgs& a) {
  STD_TORCH_CHECK(a.T * (a.H / a.G) < (int64_t{1} << 31) - 64,
                  "attention: expected T * H / G below 2^31, got T ", a.T, ", H ", a.H, ", G ", a.G);
}

// k_lengths stay on the device: what is not in [0, S] counts as the nearer of the two.
std::tuple<Tensor, Tensor> attention(const Tensor& q, const Tensor& k, const Tensor& v,
                                     std::optional<Tensor> bias, std::optional<Tensor> k_lengths,
                                     double scale, double cap, bool causal) {
  return attention_with(q, k, v, bias, k_lengths, scale, cap, causal, [&](cpu::AttentionArgs& a) {
    check_rows(a);
    std::optional<Tensor> partial;
    if (cuda::attention_splits(a)) {
      partial = torch::stable::new_empty(q, {cuda::attention_partials(a)}, ScalarType::Float);
      a.partial = static_cast<float*>(partial->mutable_data_ptr());
    }
    on_device_of(q, "attention", [&](cudaStream_t stream) {
      return partial ? cuda::attention_split(a, stream) : cuda::attention(a, stream);
    });
  });
}

std::tuple<Tensor, Tensor, Tensor, Tensor> attention_backward(const Tensor& grad, const Tensor& q,
                                                              const Tensor& k, const Tensor& v,
                                                              const Tensor& out, const Tensor& lse,
                                                              std::optional<Tensor> bias,
                                                              std::optional<Tensor> k_lengths, double scale,
                                                              double cap, bool causal, bool bias_grad) {
  return attention_backward_with(
      grad, q, k, v, out, lse, bias, k_lengths, scale, cap, causal, bias_grad,
      [&](cpu::AttentionBackwardArgs& a) {
        check_rows(a);
        Tensor working = torch::stable::new_empty(q, {cuda::attention_backward_floats(a)}, ScalarType::Float);
        a.partial = static_cast<float*>(working.mutable_data_ptr());
        on_device_of(q, "attention_backward",
                     [&](cudaStream_t stream) { return cuda::attention_backward(a, stream); });
      });
}

}  // namespace
}  // namespace llmcli

STABLE_TORCH_LIBRARY_IMPL(llmcli, CUDA, m) {
  m.impl("attention", TORCH_BOX(&llmcli::attention));
  m.impl("attention_backward", TORCH_BOX(&llmcli::attention_backward));
}
