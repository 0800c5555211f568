// Attention of a decoder stack: where the heads of q, k and v lie in a row, how they are normed and turned,
// and the passes over one layer of the cache.
#pragma once
#include "attention.h"
#include "cache.h"
#include "decoder_block.h"
#include "rows.h"

namespace llmcli {

class StackAttention {
 public:
  // x (B,T,C); lengths are those before this step. interleaved: q, k and v of a head lie side by side, not
  // those of all heads. places: none, cos and sin (1 or B,T,R/2) float32, or an additive bias (4-D) of the
  // scores.
  StackAttention(const Tensor& x, const Tensor& cache, std::vector<int64_t> lengths,
                 const std::vector<Tensor>& places, int64_t H, int64_t D, int64_t type, bool interleaved)
      : interleaved_(interleaved), lengths_(std::move(lengths)), layer_stride_(cache.stride(0)) {
    cpu::AttentionArgs& a = args_;
    a.dtype = dtype_of(x, "decoder");
    a.B = x.size(0), a.T = x.size(1), a.H = H, a.G = cache.size(2), a.D = D;
    STD_TORCH_CHECK(H > 0 && a.G > 0 && H % a.G == 0 && D >= 1 && D <= 256 && (!interleaved || H == a.G),
                    "decoder: expected H % G == 0, H == G where heads are interleaved, and D from 1 to 256");
    element_ = a.dtype == cpu::DType::f32 ? 4 : 2;
    describe_cache(a, cache, 1, type, lengths_, "decoder");
    a.q_b = a.k_b = a.v_b = a.T * width(), a.q_t = a.k_s = a.v_s = width();
    a.q_h = a.k_g = a.v_g = interleaved ? 3 * D : D;
    a.k_lengths = lengths_.data();
    a.causal = true;
    if (places.size() == 1) {
      describe_bias(a, places[0]);
    } else {
      describe_angles(places);
    }
    heads_ = a.B * a.G * cpu::attention_tiles(a);
    // With some heads for each thread it walks along one after the other; with fewer, blocks are dealt out.
    split_ = cpu::attention_tiles(a) == 1 && cpu::attention_blocks(a) > 1 &&
             heads_ < 4 * torch::stable::get_num_threads();
  }

  int64_t width() const { return (args_.H + 2 * args_.G) * args_.D; }  // of q, k and v together
  int64_t mixed() const { return args_.H * args_.D; }                  // of a row of results

  bool turns() const { return cos_ != nullptr; }
  int64_t store_items() const { return stores_apart() ? args_.B * args_.G : 0; }
  int64_t attend_items() const { return split_ ? heads_ * cpu::attention_blocks(args_) : heads_; }
  int64_t merge_items() const { return split_ ? heads_ : 0; }

  int64_t lse_bytes() const { return args_.B * args_.T * args_.H * 4; }
  int64_t partial_bytes() const { return split_ ? 4 * attend_items() * cpu::attention_partial(args_) : 0; }
  // qkv (rows, width), mixed (rows, H, D).
  void place(void* qkv, void* mixed, void* lse, void* partial) {
    args_.q = qkv_ = static_cast<char*>(qkv);
    args_.k = qkv_ + (interleaved_ ? 1 : args_.H) * args_.D * element_;
    args_.v = static_cast<const char*>(args_.k) + (interleaved_ ? 1 : args_.G) * args_.D * element_;
    args_.out = mixed;
    args_.lse = static_cast<float*>(lse);
    args_.partial = static_cast<float*>(partial);
    scratch_ = cpu::active().attention_scratch(args_);
  }

  // q and k of a row are normed, where the block has norms for them, and turn where they lie.
  void rotate(const Block& block, int64_t row, float eps) const {
    const int64_t head = args_.D * element_, runs = interleaved_ ? args_.H : 1;
    char* const first = qkv_ + row * width() * element_;
    if (block.query_norm) norm_heads(*block.query_norm, first, args_.H, eps);
    if (block.key_norm) norm_heads(*block.key_norm, first + args_.H * head, args_.G, eps);
    if (!cos_) return;
    const int64_t at = row / args_.T * angle_b_ + row % args_.T * half_;
    cpu::RotaryArgs a{};
    a.T = 1, a.H = interleaved_ ? 2 : args_.H + args_.G, a.D = a.x_h = args_.D, a.half = half_;
    a.dtype = args_.dtype;
    a.cos = cos_ + at;
    a.sin = sin_ + at;
    for (int64_t run = 0; run < runs; ++run) {
      a.x = a.y = first + run * 3 * head;
      cpu::active().rotary(a, 0, 1);
    }
  }

  // New keys and values of one head, those of positions [from, to).
  void store(size_t layer, float scale, int64_t i, int64_t from, int64_t to) const {
    cpu::active().cache_store(of_layer(layer, scale), i, i + 1, from, to);
  }
  void store(size_t layer, float scale, int64_t i) const { store(layer, scale, i, 0, args_.S); }

  void attend(size_t layer, float scale, int64_t i) const {
    const int64_t blocks = cpu::attention_blocks(args_), G = args_.G;
    if (split_) {
      const int64_t block = i / G % blocks * cpu::kAttentionBlock;
      store(layer, scale, i / G / blocks * G + i % G, block, block + cpu::kAttentionBlock);
    } else if (!stores_apart()) {
      store(layer, scale, i);
    }
    run(layer, scale, split_ ? cpu::AttentionPass::split : cpu::AttentionPass::whole, i);
  }
  void merge(size_t layer, float scale, int64_t i) const { run(layer, scale, cpu::AttentionPass::merge, i); }

 private:
  // Several tiles of a head read what one item must have stored; one tile stores what it reads.
  bool stores_apart() const { return cpu::attention_tiles(args_) > 1; }

  void describe_angles(const std::vector<Tensor>& angles) {
    if (angles.empty()) return;
    for (const Tensor& angle : angles)
      STD_TORCH_CHECK(
          angles.size() == 2 && angle.dim() == 3 && angle.sizes() == angles[0].sizes() &&
              angle.scalar_type() == ScalarType::Float && angle.is_contiguous() &&
              (angle.size(0) == 1 || angle.size(0) == args_.B) && angle.size(1) == args_.T &&
              2 * angle.size(2) <= args_.D,
          "decoder: expected no angles, or cos and sin (1 or B,T,R/2), contiguous float32, R <= D");
    cos_ = static_cast<const float*>(angles[0].const_data_ptr());
    sin_ = static_cast<const float*>(angles[1].const_data_ptr());
    half_ = angles[0].size(2);
    angle_b_ = angles[0].size(0) == 1 ? 0 : args_.T * half_;
  }

  // n heads are normed where they lie.
  void norm_heads(const Norm& norm, char* heads, int64_t n, float eps) const {
    cpu::NormArgs a = norm.args(args_.D, eps, args_.dtype);
    a.x = a.y = heads;
    a.x_rows = dense_rows(n, args_.D);
    a.rms = true;
    cpu::active().norm(a, 0, n);
  }

  cpu::AttentionArgs of_layer(size_t layer, float scale) const {
    cpu::AttentionArgs a = args_;
    a.cache += static_cast<int64_t>(layer) * layer_stride_;
    a.scale = scale;
    return a;
  }

  void run(size_t layer, float scale, cpu::AttentionPass pass, int64_t i) const {
    cpu::active().attention(of_layer(layer, scale), pass, i, i + 1, scratch(scratch_));
  }

  cpu::AttentionArgs args_{};
  bool interleaved_, split_;
  std::vector<int64_t> lengths_;  // after this step
  int64_t layer_stride_, heads_, element_, scratch_ = 0;
  char* qkv_ = nullptr;
  const float *cos_ = nullptr, *sin_ = nullptr;  // null without rotary positions
  int64_t half_ = 0, angle_b_ = 0;
};

}  // namespace llmcli
