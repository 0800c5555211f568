// llmcli::decoder on CPU tensors: a stack of pre-norm blocks and the head after it in one parallel region.
// Every phase is a kernel of the table on some of its items, so each row has the bits that the operators one
// by one would give it.
#include "cache.h"
#include "decoder_block.h"
#include "phases.h"
#include "rows.h"

namespace llmcli {
namespace {

enum Phase : size_t {
  kNorm1,
  kQkvInput,
  kQkv,
  kRotate,
  kStore,
  kAttend,
  kMerge,
  kOutInput,
  kOut,
  kNorm2,
  kUpInput,
  kUp,
  kGate,
  kDownInput,
  kDown,
  kPhases
};

cpu::Rows dense_rows(int64_t rows, int64_t stride) {
  cpu::Rows r{};
  r.dims = 1;
  r.size[0] = rows;
  r.stride[0] = stride;
  return r;
}

class Stack {
 public:
  Stack(const Tensor& x, const Tensor& update, const Tensor& cache, std::vector<int64_t> lengths,
        std::vector<int64_t> wanted, const std::vector<Tensor>& parts, const std::vector<Tensor>& angles,
        const std::vector<int64_t>& sizes, const std::vector<double>& constants)
      : x_(x),
        first_update_(update),
        wanted_(std::move(wanted)),
        dtype_(dtype_of(x, "decoder")),
        element_(dtype_ == cpu::DType::f32 ? 4 : 2) {
    STD_TORCH_CHECK(x.dim() == 3 && update.sizes() == x.sizes() && update.scalar_type() == x.scalar_type(),
                    "decoder: expected x and update (B,T,C) alike");
    STD_TORCH_CHECK(cache.dim() == 5, "decoder: expected a cache (layers,B,G,blocks,bytes)");
    STD_TORCH_CHECK(sizes.size() == 7, "decoder: expected seven sizes");
    B_ = x.size(0), T_ = x.size(1), C_ = x.size(2), rows_ = B_ * T_;
    H_ = sizes[0], inner_ = sizes[1], V_ = sizes[2], activation_ = static_cast<Activation>(sizes[3]);
    rms_ = sizes[4] != 0, D_ = sizes[5];
    G_ = cache.size(2);
    n_wanted_ = static_cast<int64_t>(wanted_.size());
    for (const int64_t row : wanted_)
      STD_TORCH_CHECK(row >= 0 && row < rows_, "decoder: there is no row ", row, " of ", rows_);
    row_block_ = rows_ < 64 ? 1 : 16;
    row_items_ = (rows_ + row_block_ - 1) / row_block_;
    const int64_t layers = cache.size(0);
    STD_TORCH_CHECK(
        rows_ > 0 && C_ > 0 && inner_ > 0 && H_ > 0 && G_ > 0 && H_ % G_ == 0 && D_ >= 1 && D_ <= 256,
        "decoder: expected rows, widths, H % G == 0 and D from 1 to 256");
    STD_TORCH_CHECK(activation_ >= kGelu && activation_ <= kSiluGate, "decoder: unknown activation");
    STD_TORCH_CHECK(static_cast<int64_t>(parts.size()) == layers * static_cast<int64_t>(kParts) + 3 &&
                        static_cast<int64_t>(constants.size()) == layers + 1,
                    "decoder: parts or constants do not belong to ", layers, " layers");
    width_ = (H_ + 2 * G_) * D_;
    hidden_width_ = hidden_width(activation_, inner_);
    eps_ = static_cast<float>(constants[0]);
    describe_attention(cache, std::move(lengths), sizes[6]);
    describe_angles(angles);
    const ScalarType dtype = x.scalar_type();
    blocks_.reserve(static_cast<size_t>(layers));
    for (size_t layer = 0; layer < static_cast<size_t>(layers); ++layer)
      blocks_.emplace_back(&parts[layer * kParts], static_cast<float>(constants[layer + 1]), activation_, C_,
                           D_, width_, H_ * D_, inner_, dtype);
    const Tensor* last = &parts[static_cast<size_t>(layers) * kParts];
    final_.emplace(last[0], present(last[1]), C_, dtype);
    if (present(last[2])) head_.emplace(last[2], nullptr, C_, V_, dtype);
  }

  // The width of a row of the result: of logits, or of what the head would read.
  int64_t columns() const { return head_ ? V_ : C_; }

  void run(void* result) {
    (head_ ? logits_ : last_) = result;
    const Tensor memory = lay_out();
    std::vector<int64_t> ends;
    ends.reserve(blocks_.size() * kPhases + 3);
    int64_t count = 0;
    const auto add = [&](int64_t items) { ends.push_back(count += items); };
    for (const Block& block : blocks_) {
      add(row_items_);
      add(preparations(block.qkv));
      add(block.qkv.items(rows_));
      add(cos_ || block.query_norm ? row_items_ : 0);
      add(stores_apart() ? B_ * G_ : 0);
      add(split_ ? attention_items_ * cpu::attention_blocks(attention_) : attention_items_);
      add(split_ ? attention_items_ : 0);
      add(preparations(block.out));
      add(block.out.items(rows_));
      add(row_items_);
      add(preparations(block.up));
      add(block.up.items(rows_));
      add(activation_ == kSiluGate ? row_items_ : 0);
      add(preparations(block.down));
      add(block.down.items(rows_));
    }
    add(n_wanted_);
    add(head_ ? head_->preparations(n_wanted_) : 0);
    add(head_ && n_wanted_ ? head_->items(n_wanted_) : 0);
    run_phases(
        ends, [this](size_t phase, int64_t item) { this->item(phase, item); },
        [this](size_t phase, int64_t item, int n) { return this->fetch(phase, item, n); });
  }

 private:
  void describe_attention(const Tensor& cache, std::vector<int64_t> lengths, int64_t type) {
    cpu::AttentionArgs& a = attention_;
    a.dtype = dtype_;
    a.B = B_, a.T = T_, a.H = H_, a.G = G_, a.D = D_;
    lengths_ = std::move(lengths);
    describe_cache(a, cache, 1, type, lengths_, "decoder");
    layer_stride_ = cache.stride(0);
    a.q_b = a.k_b = a.v_b = T_ * width_, a.q_t = a.k_s = a.v_s = width_, a.q_h = a.k_g = a.v_g = D_;
    a.k_lengths = lengths_.data();
    a.causal = true;
    attention_items_ = B_ * G_ * cpu::attention_tiles(a);
    // With some heads for each thread it walks along one after the other; with fewer, blocks are dealt out.
    split_ = cpu::attention_tiles(a) == 1 && cpu::attention_blocks(a) > 1 &&
             attention_items_ < 4 * torch::stable::get_num_threads();
  }

  // Several tiles of a head read what one item must have stored; one tile stores what it reads.
  bool stores_apart() const { return cpu::attention_tiles(attention_) > 1; }

  void describe_angles(const std::vector<Tensor>& angles) {
    if (angles.empty()) return;
    for (const Tensor& angle : angles)
      STD_TORCH_CHECK(
          angles.size() == 2 && angle.dim() == 3 && angle.sizes() == angles[0].sizes() &&
              angle.scalar_type() == ScalarType::Float && angle.is_contiguous() &&
              (angle.size(0) == 1 || angle.size(0) == B_) && angle.size(1) == T_ && 2 * angle.size(2) <= D_,
          "decoder: expected no angles, or cos and sin (1 or B,T,R/2), contiguous float32, R <= D");
    cos_ = static_cast<const float*>(angles[0].const_data_ptr());
    sin_ = static_cast<const float*>(angles[1].const_data_ptr());
    half_ = angles[0].size(2);
    angle_b_ = angles[0].size(0) == 1 ? 0 : T_ * half_;
  }

  // Places of everything between the layers, in memory that the caller holds.
  Tensor lay_out() {
    const int64_t partials =
        split_ ? attention_items_ * cpu::attention_blocks(attention_) * cpu::attention_partial(attention_)
               : 0;
    int64_t room = head_ ? head_->room(n_wanted_) : 0;
    for (const Block& block : blocks_)
      for (const LinearLayer* layer : {&block.qkv, &block.out, &block.up, &block.down})
        room = std::max(room, layer->room(rows_));
    const struct {
      void** place;
      int64_t bytes;
    } parts[] = {{&stream_, rows_ * C_ * element_},
                 {&normed_, rows_ * C_ * element_},
                 {&update_, rows_ * C_ * element_},
                 {&qkv_, rows_ * width_ * element_},
                 {&mixed_, rows_ * H_ * D_ * element_},
                 {&hidden_, rows_ * hidden_width_ * element_},
                 {&gated_, rows_ * inner_ * element_},
                 {head_ ? &last_ : &logits_, head_ ? n_wanted_ * C_ * element_ : 0},
                 {&room_, room},
                 {reinterpret_cast<void**>(&attention_.lse), rows_ * H_ * 4},
                 {reinterpret_cast<void**>(&attention_.partial), partials * 4}};
    int64_t bytes = 0;
    for (const auto& part : parts) bytes += (part.bytes + 63) / 64 * 64;
    const Tensor memory = empty_cpu(std::vector<int64_t>{bytes}, ScalarType::Byte);
    char* at = static_cast<char*>(memory.mutable_data_ptr());
    for (const auto& part : parts) {
      *part.place = at;
      at += (part.bytes + 63) / 64 * 64;
    }
    attention_.out = mixed_;
    scratch_ = cpu::active().attention_scratch(attention_);
    return memory;
  }

  // Rows are normed, turned and prepared in blocks: one is less work than handing it out.
  template <class F>
  void each_row(int64_t item, const F& f) const {
    for (int64_t row = item * row_block_; row < rows_ && row < (item + 1) * row_block_; ++row) f(row);
  }
  int64_t preparations(const LinearLayer& layer) const { return layer.preparations(rows_) ? row_items_ : 0; }

  void item(size_t phase, int64_t i) const {
    const size_t layer = phase / kPhases;
    const size_t kind = phase % kPhases;
    if (layer == blocks_.size())
      return kind == 0   ? close(i)
             : kind == 1 ? head_->prepare(last_, n_wanted_, room_, i, i + 1)
                         : run(*head_, last_, logits_, n_wanted_, i);
    const Block& block = blocks_[layer];
    const void* const wide = activation_ == kSiluGate ? gated_ : hidden_;
    switch (static_cast<Phase>(kind)) {
      case kNorm1:
        return norm(block.norm_1, layer == 0, i);
      case kQkvInput:
        return prepare(block.qkv, normed_, i);
      case kQkv:
        return run(block.qkv, normed_, qkv_, rows_, i);
      case kRotate:
        return rotate(block, i);
      case kStore:
        return store(layer, i, 0, attention_.S);
      case kAttend:
        return attend(layer, split_ ? cpu::AttentionPass::split : cpu::AttentionPass::whole, i);
      case kMerge:
        return attend(layer, cpu::AttentionPass::merge, i);
      case kOutInput:
        return prepare(block.out, mixed_, i);
      case kOut:
        return run(block.out, mixed_, update_, rows_, i);
      case kNorm2:
        return norm(block.norm_2, false, i);
      case kUpInput:
        return prepare(block.up, normed_, i);
      case kUp:
        return up(block.up, i);
      case kGate:
        return gate(i);
      case kDownInput:
        return prepare(block.down, wide, i);
      case kDown:
        return run(block.down, wide, update_, rows_, i);
      case kPhases:
        break;
    }
  }

  // The n-th part of an item's weights, into this core's cache; false where there is none.
  bool fetch(size_t phase, int64_t i, int n) const {
    const size_t layer = phase / kPhases, kind = phase % kPhases;
    if (layer == blocks_.size()) return kind == 2 && head_->fetch(n_wanted_, i, n);
    const Block& block = blocks_[layer];
    switch (kind) {
      case kQkv:
        return block.qkv.fetch(rows_, i, n);
      case kOut:
        return block.out.fetch(rows_, i, n);
      case kUp:
        return block.up.fetch(rows_, i, n);
      case kDown:
        return block.down.fetch(rows_, i, n);
      default:
        return false;
    }
  }

  void prepare(const LinearLayer& layer, const void* x, int64_t i) const {
    layer.prepare(x, rows_, room_, i * row_block_, std::min(rows_, (i + 1) * row_block_));
  }

  void run(const LinearLayer& layer, const void* x, void* y, int64_t rows, int64_t i,
           bool with_bias = true) const {
    layer.run(x, y, rows, room_, with_bias, i, i + 1);
  }

  // The norm of stream + update; the sum becomes the stream.
  void norm(const Norm& norm, bool first, int64_t i) const {
    cpu::NormArgs a = norm_args(norm);
    a.x = first ? first_update_.data() : update_;
    a.x_rows = first ? first_update_.layout() : dense_rows(rows_, C_);
    a.residual = first ? x_.data() : stream_;
    a.residual_rows = first ? x_.layout() : dense_rows(rows_, C_);
    a.total = stream_;
    a.y = normed_;
    cpu::active().norm(a, i * row_block_, std::min(rows_, (i + 1) * row_block_));
  }

  // The same before the head, of the i-th row that is wanted.
  void close(int64_t i) const {
    cpu::NormArgs a = norm_args(*final_);
    const int64_t bytes = C_ * element_, offset = wanted_[static_cast<size_t>(i)] * bytes;
    a.x = static_cast<char*>(update_) + offset;
    a.residual = static_cast<char*>(stream_) + offset;
    a.x_rows = a.residual_rows = dense_rows(1, C_);
    a.total = static_cast<char*>(normed_) + offset;
    a.y = static_cast<char*>(last_) + i * bytes;
    cpu::active().norm(a, 0, 1);
  }

  cpu::NormArgs norm_args(const Norm& norm) const {
    cpu::NormArgs a{};
    a.weight = norm.weight;
    a.bias = norm.bias;
    a.wide_weight = norm.wide;
    a.size = C_;
    a.eps = eps_;
    a.dtype = dtype_;
    a.rms = rms_;
    return a;
  }

  // n heads are normed where they lie.
  void norm_heads(const Norm& norm, char* heads, int64_t n) const {
    cpu::NormArgs a = norm_args(norm);
    a.x = a.y = heads;
    a.x_rows = dense_rows(n, D_);
    a.size = D_;
    a.rms = true;
    cpu::active().norm(a, 0, n);
  }

  // q and k are normed, where the block has norms for them, and turn where they lie.
  void rotate(const Block& block, int64_t i) const {
    cpu::RotaryArgs a{};
    a.T = 1, a.H = H_ + G_, a.D = a.x_h = D_, a.half = half_;
    a.dtype = dtype_;
    each_row(i, [&](int64_t row) {
      const int64_t at = row / T_ * angle_b_ + row % T_ * half_;
      char* const q = static_cast<char*>(qkv_) + row * width_ * element_;
      if (block.query_norm) norm_heads(*block.query_norm, q, H_);
      if (block.key_norm) norm_heads(*block.key_norm, q + H_ * D_ * element_, G_);
      if (!cos_) return;
      a.x = a.y = q;
      a.cos = cos_ + at;
      a.sin = sin_ + at;
      cpu::active().rotary(a, 0, 1);
    });
  }

  cpu::AttentionArgs attention(size_t layer) const {
    cpu::AttentionArgs a = attention_;
    a.q = qkv_;
    a.k = static_cast<const char*>(qkv_) + H_ * D_ * element_;
    a.v = static_cast<const char*>(a.k) + G_ * D_ * element_;
    a.cache += static_cast<int64_t>(layer) * layer_stride_;
    a.scale = blocks_[layer].scale;
    return a;
  }

  // New keys and values of one head, those of positions [from, to).
  void store(size_t layer, int64_t i, int64_t from, int64_t to) const {
    cpu::active().cache_store(attention(layer), i, i + 1, from, to);
  }

  void attend(size_t layer, cpu::AttentionPass pass, int64_t i) const {
    if (pass == cpu::AttentionPass::whole && !stores_apart()) store(layer, i, 0, attention_.S);
    if (pass == cpu::AttentionPass::split) {
      const int64_t blocks = cpu::attention_blocks(attention_),
                    block = i / G_ % blocks * cpu::kAttentionBlock;
      store(layer, i / G_ / blocks * G_ + i % G_, block, block + cpu::kAttentionBlock);
    }
    cpu::active().attention(attention(layer), pass, i, i + 1, scratch(scratch_));
  }

  // A panel of the wide layer and, unless it is gated, its activation, which adds the bias.
  void up(const LinearLayer& up, int64_t i) const {
    const bool gated = activation_ == kSiluGate;
    run(up, normed_, hidden_, rows_, i, gated);
    if (gated) return;
    const LinearLayer::Part part = up.part(rows_, i);
    cpu::GeluArgs a{};
    a.dtype = dtype_;
    a.tanh = activation_ == kGeluTanh;
    if (up.bias()) a.bias = static_cast<const char*>(up.bias()) + part.column * element_;
    a.rows = 1;
    a.size = part.columns;
    a.x_rows = dense_rows(1, 0);
    for (int64_t row = part.row; row < part.row + part.rows; ++row) {
      a.x = a.y = static_cast<char*>(hidden_) + (row * inner_ + part.column) * element_;
      cpu::active().gelu(a, 0, 1);
    }
  }

  void gate(int64_t i) const {
    cpu::SiluGateArgs a{};
    a.dtype = dtype_;
    a.rows = rows_;
    a.size = inner_;
    a.gate = hidden_;
    a.up = static_cast<const char*>(hidden_) + inner_ * element_;
    a.gate_rows = a.up_rows = dense_rows(rows_, hidden_width_);
    a.y = gated_;
    cpu::active().silu_gate(a, i * row_block_, std::min(rows_, (i + 1) * row_block_));
  }

  RowTensor x_, first_update_;
  cpu::DType dtype_;
  int64_t element_;              // bytes
  std::vector<int64_t> wanted_;  // rows of B and T that the result has
  int64_t B_, T_, C_, rows_, n_wanted_, row_block_, row_items_, H_, G_, D_, inner_, V_, width_, hidden_width_;
  Activation activation_;
  bool rms_;
  float eps_;
  std::vector<Block> blocks_;
  std::optional<Norm> final_;
  std::optional<LinearLayer> head_;
  const float *cos_ = nullptr, *sin_ = nullptr;  // null without rotary positions
  int64_t half_ = 0, angle_b_ = 0;
  int64_t layer_stride_;
  std::vector<int64_t> lengths_;  // after this step
  cpu::AttentionArgs attention_{};
  int64_t attention_items_, scratch_;
  bool split_;
  void *stream_, *normed_, *update_, *qkv_, *mixed_, *hidden_, *gated_, *last_, *logits_, *room_;
};

// x and update (B,T,C), a cache (layers,B,G,blocks,bytes) that each row fills from its length on → logits
// (n,V) of the n wanted rows of B and T, or (n,C) before the head where that is empty. sizes: H, inner width,
// V, activation, RMS norm or not, D, type of the cache; constants: eps, each layer's scale.
Tensor decoder(const Tensor& x, const Tensor& update, const Tensor& cache, std::vector<int64_t> lengths,
               std::vector<int64_t> rows, std::vector<Tensor> parts, std::vector<Tensor> angles,
               std::vector<int64_t> sizes, std::vector<double> constants) {
  const int64_t n = static_cast<int64_t>(rows.size());
  Stack stack(x, update, cache, std::move(lengths), std::move(rows), parts, angles, sizes, constants);
  const Tensor result = empty_cpu(std::vector<int64_t>{n, stack.columns()}, x.scalar_type());
  stack.run(result.mutable_data_ptr());
  return result;
}

}  // namespace
}  // namespace llmcli

STABLE_TORCH_LIBRARY_IMPL(llmcli, CPU, m) { m.impl("decoder", TORCH_BOX(&llmcli::decoder)); }
