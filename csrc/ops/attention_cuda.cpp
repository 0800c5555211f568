// llmcli::attention on CUDA tensors.
#include "attention.h"
#include "cuda.h"

namespace llmcli {
namespace {

// k_lengths stay on the device: what is not in [0, S] counts as the nearer of the two.
std::tuple<Tensor, Tensor> attention(const Tensor& q, const Tensor& k, const Tensor& v,
                                     std::optional<Tensor> bias, std::optional<Tensor> k_lengths,
                                     double scale, double cap, bool causal) {
  return attention_with(q, k, v, bias, k_lengths, scale, cap, causal, [&](cpu::AttentionArgs& a) {
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

}  // namespace
}  // namespace llmcli

STABLE_TORCH_LIBRARY_IMPL(llmcli, CUDA, m) { m.impl("attention", TORCH_BOX(&llmcli::attention)); }
