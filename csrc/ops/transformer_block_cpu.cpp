// llmcli::transformer_block and its backward on CPU tensors: a block's operators one after the other.
#include <cstring>

#include "operators_cpu.h"
#include "product.h"
#include "rows.h"

namespace llmcli {
namespace {

constexpr const char* kName = "transformer_block";

void check_linear(const Tensor& x, const Tensor& weight, int64_t outputs, int64_t inputs) {
  STD_TORCH_CHECK(weight.dim() == 2 && weight.size(0) == outputs && weight.size(1) == inputs &&
                      weight.scalar_type() == x.scalar_type(),
                  kName, ": expected a weight (", outputs, ",", inputs, ") of x's dtype");
}

void check_bias(const Tensor& x, const Tensor& bias, int64_t outputs) {
  STD_TORCH_CHECK(bias.numel() == outputs && bias.is_contiguous() && bias.scalar_type() == x.scalar_type(),
                  kName, ": expected a contiguous bias (", outputs, ") of x's dtype");
}

// x Wᵀ + bias: x (B,T,K) contiguous, weight (N,K) → (B,T,N).
Tensor linear(const Tensor& x, const Tensor& weight, const Tensor* bias) {
  const Tensor y = product_on_threads(matrix_of(x), matrix_of(weight).turned(), x.scalar_type(), bias);
  return torch::stable::view(y, {x.size(0), x.size(1), weight.size(0)});
}

// From the gradient (B,T,N) of a linear layer's result, contiguous: those of its input, weight and bias.
Tensor input_gradient(const Tensor& grad, const Tensor& weight) {
  const Tensor dx = product_on_threads(matrix_of(grad), matrix_of(weight), grad.scalar_type());
  return torch::stable::view(dx, {grad.size(0), grad.size(1), weight.size(1)});
}

Tensor weight_gradient(const Tensor& grad, const Tensor& x) {
  return product_on_threads(matrix_of(grad).turned(), matrix_of(x), grad.scalar_type());
}

Tensor bias_gradient(const Tensor& grad) {
  const int64_t dims[] = {0, 1};
  return torch::stable::sum(grad, torch::headeronly::IntHeaderOnlyArrayRef(dims, 2));
}

// q, k or v of qkv (B,T,3C), `place` 0 to 2, as (B,T,H,D) in its memory.
Tensor heads_of(const Tensor& qkv, int64_t place, int64_t heads) {
  const int64_t B = qkv.size(0), T = qkv.size(1), width = qkv.size(2), C = width / 3, D = C / heads;
  const int64_t sizes[] = {B, T, heads, D}, strides[] = {T * width, width, D, 1};
  const int64_t bytes = qkv.scalar_type() == ScalarType::Float ? 4 : 2;
  return torch::stable::from_blob(
      static_cast<char*>(const_cast<void*>(qkv.const_data_ptr())) + place * C * bytes,
      torch::headeronly::IntHeaderOnlyArrayRef(sizes, 4),
      torch::headeronly::IntHeaderOnlyArrayRef(strides, 4),
      torch::stable::Device(torch::headeronly::DeviceType::CPU), qkv.scalar_type());
}

// q, k and v (B,T,H,D), contiguous, side by side → (B,T,3C).
Tensor side_by_side(const Tensor& q, const Tensor& k, const Tensor& v) {
  const int64_t C = q.size(2) * q.size(3), rows = q.size(0) * q.size(1);
  const int64_t sizes[] = {q.size(0), q.size(1), 3 * C};
  const Tensor qkv = empty_cpu(torch::headeronly::IntHeaderOnlyArrayRef(sizes, 3), q.scalar_type());
  const size_t bytes = static_cast<size_t>(C * (q.scalar_type() == ScalarType::Float ? 4 : 2));
  char* const to = static_cast<char*>(qkv.mutable_data_ptr());
  const char* const from[] = {static_cast<const char*>(q.const_data_ptr()),
                              static_cast<const char*>(k.const_data_ptr()),
                              static_cast<const char*>(v.const_data_ptr())};
  parallel(rows, static_cast<double>(bytes) * 0.1, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row)
      for (int64_t part = 0; part < 3; ++part)
        std::memcpy(to + (row * 3 + part) * bytes, from[part] + row * bytes, bytes);
  });
  return qkv;
}

// → the stream and the update that leave the block, then what the backward needs.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> transformer_block(
    const Tensor& x, const Tensor& update, const Tensor& norm_1, const Tensor& norm_1_bias, const Tensor& qkv,
    const Tensor& qkv_bias, const Tensor& out, const Tensor& out_bias, const Tensor& norm_2,
    const Tensor& norm_2_bias, const Tensor& up, const Tensor& up_bias, const Tensor& down,
    const Tensor& down_bias, int64_t heads, double scale, double eps, bool tanh) {
  STD_TORCH_CHECK(x.dim() == 3 && heads > 0 && x.size(2) % heads == 0, kName,
                  ": expected x (B,T,C) with C a multiple of the heads");
  const int64_t C = x.size(2), inner = up.size(0);
  check_linear(x, qkv, 3 * C, C);
  check_linear(x, out, C, C);
  check_linear(x, up, inner, C);
  check_linear(x, down, C, inner);
  check_bias(x, qkv_bias, 3 * C);
  check_bias(x, out_bias, C);
  check_bias(x, down_bias, C);
  const auto [normed_1, stream_1] = add_norm(update, x, norm_1, norm_1_bias, eps, false);
  const Tensor projected = linear(normed_1, qkv, &qkv_bias);
  const auto [mixed, lse] =
      attention(heads_of(projected, 0, heads), heads_of(projected, 1, heads), heads_of(projected, 2, heads),
                std::nullopt, std::nullopt, scale, 0.0, true);
  const Tensor attended = linear(torch::stable::view(mixed, {x.size(0), x.size(1), C}), out, &out_bias);
  const auto [normed_2, stream_2] = add_norm(attended, stream_1, norm_2, norm_2_bias, eps, false);
  const Tensor hidden = linear(normed_2, up, nullptr);
  const Tensor active = gelu(hidden, up_bias, tanh);
  return {
      stream_2, linear(active, down, &down_bias), stream_1, normed_1, projected, mixed, lse, normed_2, hidden,
      active};
}

// The gradients of stream and update that leave the block, what the forward left → the gradient of x, which
// is that of update, too, and those of the weights in their order.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor,
           Tensor>
transformer_block_backward(const Tensor& grad_stream, const Tensor& grad_update, const Tensor& norm_1,
                           const Tensor& qkv, const Tensor& out, const Tensor& norm_2, const Tensor& up,
                           const Tensor& up_bias, const Tensor& down, const Tensor& stream_2,
                           const Tensor& stream_1, const Tensor& normed_1, const Tensor& projected,
                           const Tensor& mixed, const Tensor& lse, const Tensor& normed_2,
                           const Tensor& hidden, const Tensor& active, int64_t heads, double scale,
                           double eps, bool tanh) {
  const int64_t B = stream_1.size(0), T = stream_1.size(1), C = stream_1.size(2);
  const Tensor d_update = torch::stable::contiguous(grad_update);
  const auto [d_hidden, d_up_bias] = gelu_backward(input_gradient(d_update, down), hidden, up_bias, tanh);
  const auto [d_stream, d_norm_2, d_norm_2_bias] =
      norm_backward(input_gradient(d_hidden, up), stream_2, norm_2, grad_stream, true, eps, false);
  const Tensor d_mixed = torch::stable::view(input_gradient(d_stream, out), {B, T, heads, C / heads});
  const auto [dq, dk, dv, none] = attention_backward(
      d_mixed, heads_of(projected, 0, heads), heads_of(projected, 1, heads), heads_of(projected, 2, heads),
      mixed, lse, std::nullopt, std::nullopt, scale, 0.0, true, false);
  const Tensor d_projected = side_by_side(dq, dk, dv);
  const auto [dx, d_norm_1, d_norm_1_bias] =
      norm_backward(input_gradient(d_projected, qkv), stream_1, norm_1, d_stream, true, eps, false);
  return {dx,
          d_norm_1,
          d_norm_1_bias,
          weight_gradient(d_projected, normed_1),
          bias_gradient(d_projected),
          weight_gradient(d_stream, torch::stable::view(mixed, {B, T, C})),
          bias_gradient(d_stream),
          d_norm_2,
          d_norm_2_bias,
          weight_gradient(d_hidden, normed_2),
          d_up_bias,
          weight_gradient(d_update, active),
          bias_gradient(d_update)};
}

}  // namespace
}  // namespace llmcli

STABLE_TORCH_LIBRARY_IMPL(llmcli, CPU, m) {
  m.impl("transformer_block", TORCH_BOX(&llmcli::transformer_block));
  m.impl("transformer_block_backward", TORCH_BOX(&llmcli::transformer_block_backward));
}
