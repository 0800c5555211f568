// What the bindings of norms share: checks, and the argument structs.
#pragma once
#include <optional>
#include <tuple>

#include "rows.h"

namespace llmcli {

// weight and bias (C,), both contiguous and of one dtype: float32 (true) or x's.
inline bool check_norm_weights(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias) {
  STD_TORCH_CHECK(x.dim() >= 1 && weight.numel() == x.size(x.dim() - 1) && weight.is_contiguous(),
                  "norm: expected x (..., C) and a contiguous weight (C,)");
  STD_TORCH_CHECK(weight.scalar_type() == x.scalar_type() || weight.scalar_type() == ScalarType::Float,
                  "norm: expected weight of float32 or of x's dtype");
  STD_TORCH_CHECK(!bias || (bias->numel() == weight.numel() && bias->is_contiguous() &&
                            bias->scalar_type() == weight.scalar_type()),
                  "norm: expected a contiguous bias like weight");
  return weight.scalar_type() == ScalarType::Float;
}

// y, and with a residual total = x + residual, both like x and contiguous. run(args, rows) does it.
template <class Run>
void norm_into(const Tensor& x, const Tensor* residual, const Tensor& weight,
               const std::optional<Tensor>& bias, double eps, bool rms, const Tensor& y, const Tensor* total,
               const Run& run) {
  cpu::NormArgs a{};
  a.wide_weight = check_norm_weights(x, weight, bias);
  STD_TORCH_CHECK(!residual || (x.sizes() == residual->sizes() && x.scalar_type() == residual->scalar_type()),
                  "norm: x and residual differ in shape or dtype");
  a.dtype = dtype_of(x, "norm");
  a.size = weight.numel();
  a.eps = static_cast<float>(eps);
  a.rms = rms;
  const int64_t rows = row_count(x);
  if (rows == 0) return;
  const RowTensor x_rows(x);
  a.x = x_rows.data();
  a.x_rows = x_rows.layout();
  std::optional<RowTensor> residual_rows;
  if (residual) {
    residual_rows.emplace(*residual);
    a.residual = residual_rows->data();
    a.residual_rows = residual_rows->layout();
    a.total = total->mutable_data_ptr();
  }
  a.weight = weight.const_data_ptr();
  a.bias = bias ? bias->const_data_ptr() : nullptr;
  a.y = y.mutable_data_ptr();
  run(a, rows);
}

// Blocks of rows, and the width of what each of them leaves for the gradients of weight and bias.
struct NormPartials {
  int64_t blocks, width;
  NormPartials(const Tensor& x, const Tensor& weight, bool rms)
      : blocks(blocks_of(row_count(x))), width((rms ? 1 : 2) * weight.numel()) {}
};

// dx like x and contiguous; partial as NormPartials tells. run(args) does it.
template <class Run>
void norm_backward_into(const Tensor& grad, const Tensor& x, const Tensor& weight,
                        const std::optional<Tensor>& extra, bool has_bias, double eps, bool rms,
                        const Tensor& dx, float* partial, const Run& run) {
  cpu::NormBackwardArgs a{};
  a.wide_weight = check_norm_weights(x, weight, std::nullopt);
  a.dtype = dtype_of(x, "norm_backward");
  const auto like_x = [&](const Tensor& t) {
    return t.sizes() == x.sizes() && t.scalar_type() == x.scalar_type();
  };
  STD_TORCH_CHECK(like_x(grad) && (!extra || like_x(*extra)),
                  "norm_backward: grad and x differ in shape or dtype");
  STD_TORCH_CHECK(!(rms && has_bias), "norm_backward: RMS norm has no bias");
  a.size = weight.numel();
  a.rows = row_count(x);
  a.eps = static_cast<float>(eps);
  a.rms = rms;
  if (a.rows == 0) return;
  const RowTensor grad_rows(grad), x_rows(x);
  std::optional<RowTensor> extra_rows;
  a.grad = grad_rows.data();
  a.grad_rows = grad_rows.layout();
  a.x = x_rows.data();
  a.x_rows = x_rows.layout();
  if (extra) {
    extra_rows.emplace(*extra);
    a.extra = extra_rows->data();
    a.extra_rows = extra_rows->layout();
  }
  a.weight = weight.const_data_ptr();
  a.dx = dx.mutable_data_ptr();
  a.partial = partial;
  run(a);
}

}  // namespace llmcli
