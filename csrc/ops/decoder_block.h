// A pre-norm block as the decoder operator takes it: tensors in a fixed order, checked and described once.
#pragma once
#include "linear.h"

namespace llmcli {

enum Activation : int64_t { kGelu, kGeluTanh, kSiluGate };

// The tensors of a block, in order; an empty one is left out.
enum Part : size_t {
  kWeight1,
  kBias1,
  kQkvWeight,
  kQkvBias,
  kQueryNorm,
  kKeyNorm,
  kOutWeight,
  kOutBias,
  kWeight2,
  kBias2,
  kUpWeight,
  kUpBias,
  kDownWeight,
  kDownBias,
  kParts
};

inline const Tensor* present(const Tensor& x) { return x.numel() == 0 ? nullptr : &x; }

inline int64_t hidden_width(Activation activation, int64_t inner) {
  return activation == kSiluGate ? 2 * inner : inner;
}

struct Norm {
  const void *weight, *bias;
  bool wide;

  // bias_ is null where there is none.
  Norm(const Tensor& weight_, const Tensor* bias_, int64_t size, ScalarType dtype)
      : weight(weight_.const_data_ptr()), bias(bias_ ? bias_->const_data_ptr() : nullptr) {
    const ScalarType own = weight_.scalar_type();
    STD_TORCH_CHECK(
        weight_.numel() == size && weight_.is_contiguous() && (own == dtype || own == ScalarType::Float),
        "decoder: expected contiguous norm weights of ", size, " in float32 or x's dtype");
    STD_TORCH_CHECK(
        !bias_ || (bias_->numel() == size && bias_->is_contiguous() && bias_->scalar_type() == own),
        "decoder: expected a contiguous norm bias like its weight");
    wide = own == ScalarType::Float;
  }

  cpu::NormArgs args(int64_t size, float eps, cpu::DType dtype) const {
    cpu::NormArgs a{};
    a.weight = weight;
    a.bias = bias;
    a.wide_weight = wide;
    a.size = size;
    a.eps = eps;
    a.dtype = dtype;
    return a;
  }
};

struct Block {
  Norm norm_1;
  LinearLayer qkv, out;
  std::optional<Norm> query_norm, key_norm;  // of each head
  Norm norm_2;
  LinearLayer up, down;
  float scale;  // of attention scores

  // p: a block's parts; C the width of the stream, D of a head, qkv_width and mixed those of q, k and v
  // together and of the heads' results, inner that of the MLP.
  Block(const Tensor* p, float scale_, Activation activation, int64_t C, int64_t D, int64_t qkv_width,
        int64_t mixed, int64_t inner, ScalarType dtype)
      : norm_1(p[kWeight1], present(p[kBias1]), C, dtype),
        qkv(p[kQkvWeight], present(p[kQkvBias]), C, qkv_width, dtype),
        out(p[kOutWeight], present(p[kOutBias]), mixed, C, dtype),
        norm_2(p[kWeight2], present(p[kBias2]), C, dtype),
        up(p[kUpWeight], present(p[kUpBias]), C, hidden_width(activation, inner), dtype),
        down(p[kDownWeight], present(p[kDownBias]), inner, C, dtype),
        scale(scale_) {
    STD_TORCH_CHECK(!present(p[kQueryNorm]) == !present(p[kKeyNorm]),
                    "decoder: expected norms of queries and keys, or of neither");
    if (present(p[kQueryNorm])) query_norm.emplace(p[kQueryNorm], nullptr, D, dtype);
    if (present(p[kKeyNorm])) key_norm.emplace(p[kKeyNorm], nullptr, D, dtype);
    STD_TORCH_CHECK(activation != kSiluGate || !present(p[kUpBias]), "decoder: a gated layer has no bias");
  }
};

}  // namespace llmcli
