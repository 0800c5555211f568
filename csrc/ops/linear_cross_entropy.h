// What the bindings of linear_cross_entropy share: checks.
#pragma once
#include <tuple>

#include "rows.h"

namespace llmcli {

constexpr const char* kCrossEntropy = "linear_cross_entropy";

// x (N, C), weight (V, C), targets (N).
inline void check_linear_cross_entropy(const Tensor& x, const Tensor& weight, const Tensor& targets) {
  STD_TORCH_CHECK(x.dim() == 2 && weight.dim() == 2 && weight.size(1) == x.size(1) &&
                      weight.scalar_type() == x.scalar_type(),
                  kCrossEntropy, ": expected x (N,C) and weight (V,C) of one dtype");
  STD_TORCH_CHECK(
      targets.dim() == 1 && targets.size(0) == x.size(0) && targets.scalar_type() == ScalarType::Long,
      kCrossEntropy, ": expected int64 targets (N)");
}

}  // namespace llmcli
