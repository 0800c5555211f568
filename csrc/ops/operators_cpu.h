// The operators on CPU tensors that others are made of: defined beside their registrations, which say what
// they do.
#pragma once
#include <optional>
#include <tuple>

#include "binding.h"

namespace llmcli {

std::tuple<Tensor, Tensor> add_norm(const Tensor& x, const Tensor& residual, const Tensor& weight,
                                    std::optional<Tensor> bias, double eps, bool rms);
std::tuple<Tensor, Tensor, Tensor> norm_backward(const Tensor& grad, const Tensor& x, const Tensor& weight,
                                                 std::optional<Tensor> extra, bool has_bias, double eps,
                                                 bool rms);

std::tuple<Tensor, Tensor> attention(const Tensor& q, const Tensor& k, const Tensor& v,
                                     std::optional<Tensor> bias, std::optional<Tensor> k_lengths,
                                     double scale, double cap, bool causal);
std::tuple<Tensor, Tensor, Tensor, Tensor> attention_backward(const Tensor& grad, const Tensor& q,
                                                              const Tensor& k, const Tensor& v,
                                                              const Tensor& out, const Tensor& lse,
                                                              std::optional<Tensor> bias,
                                                              std::optional<Tensor> k_lengths, double scale,
                                                              double cap, bool causal, bool bias_grad);

Tensor gelu(const Tensor& x, std::optional<Tensor> bias, bool tanh);
std::tuple<Tensor, Tensor> gelu_backward(const Tensor& grad, const Tensor& x, std::optional<Tensor> bias,
                                         bool tanh);

}  // namespace llmcli
