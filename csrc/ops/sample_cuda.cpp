// llmcli::sample on CUDA tensors.
#include <cmath>

#include "cuda.h"

namespace llmcli {
namespace {

// logits (N, V), uniforms (N) float64 → tokens (N).
Tensor sample(const Tensor& logits_, const Tensor& uniforms_, double temperature, int64_t top_k, double top_p,
              double min_p) {
  STD_TORCH_CHECK(logits_.dim() == 2 && logits_.size(1) > 0 && uniforms_.dim() == 1 &&
                      uniforms_.size(0) == logits_.size(0) && uniforms_.scalar_type() == ScalarType::Double,
                  "sample: expected logits (N,V) and float64 uniforms (N)");
  STD_TORCH_CHECK(temperature > 0 && top_k >= 0 && top_p > 0 && min_p >= 0,
                  "sample: expected temperature and top_p above 0, top_k and min_p of at least 0");
  const Tensor logits = torch::stable::contiguous(logits_), uniforms = torch::stable::contiguous(uniforms_);
  const Tensor tokens = torch::stable::new_empty(logits, {logits.size(0)}, ScalarType::Long);
  cuda::SampleArgs a{};
  a.logits = logits.const_data_ptr();
  a.uniforms = static_cast<const double*>(uniforms.const_data_ptr());
  a.tokens = static_cast<int64_t*>(tokens.mutable_data_ptr());
  a.size = logits.size(1);
  a.temperature = std::max(static_cast<float>(temperature), 1.17549435e-38f);  // the least normal number
  a.top_k = top_k == 0 || top_k > a.size ? a.size : top_k;
  a.top_p = top_p;
  a.lowest = static_cast<float>(std::log(min_p));
  a.dtype = dtype_of(logits, "sample");
  if (logits.size(0) > 0)
    on_device_of(logits, "sample",
                 [&](cudaStream_t stream) { return cuda::sample(a, logits.size(0), stream); });
  return tokens;
}

}  // namespace
}  // namespace llmcli

STABLE_TORCH_LIBRARY_IMPL(llmcli, CUDA, m) { m.impl("sample", TORCH_BOX(&llmcli::sample)); }
