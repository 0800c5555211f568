// llmcli::decoder on CPU tensors: a stack of pre-norm blocks and the head after it in one parallel region.
// Every phase is a kernel of the table on some of its items, so each row has the bits that the operators one
// by one would give it.
#include "decoder_attention.h"
#include "phases.h"
#include "rows.h"

namespace llmcli {
namespace {

enum Phase : size_t {
  kNorm1,
  kQkv,
  kRotate,
  kStore,
  kAttend,
  kMerge,
  kOutInput,
  kOut,
  kNorm2,
  kUp,
  kDownInput,
  kDown,
  kPhases
};

class Stack {
 public:
  Stack(const Tensor& x, const Tensor& update, const Tensor& cache, std::vector<int64_t> lengths,
        std::vector<int64_t> wanted, const std::vector<Tensor>& parts, const std::vector<Tensor>& places,
        const std::vector<int64_t>& sizes, const std::vector<double>& constants)
      : x_(x),
        first_update_(update),
        dtype_(dtype_of(x, "decoder")),
        element_(dtype_ == cpu::DType::f32 ? 4 : 2),
        wanted_(std::move(wanted)) {
    STD_TORCH_CHECK(x.dim() == 3 && update.sizes() == x.sizes() && update.scalar_type() == x.scalar_type(),
                    "decoder: expected x and update (B,T,C) alike");
    STD_TORCH_CHECK(cache.dim() == 5, "decoder: expected a cache (layers,B,G,blocks,bytes)");
    STD_TORCH_CHECK(sizes.size() == 9, "decoder: expected nine sizes");
    C_ = x.size(2), rows_ = x.size(0) * x.size(1);
    inner_ = sizes[1], V_ = sizes[2], activation_ = static_cast<Activation>(sizes[3]), rms_ = sizes[4] != 0;
    parallel_ = sizes[8] != 0;
    n_wanted_ = static_cast<int64_t>(wanted_.size());
    for (const int64_t row : wanted_)
      STD_TORCH_CHECK(row >= 0 && row < rows_, "decoder: there is no row ", row, " of ", rows_);
    row_block_ = rows_ < 64 ? 1 : 16;
    row_items_ = (rows_ + row_block_ - 1) / row_block_;
    const int64_t layers = cache.size(0);
    STD_TORCH_CHECK(rows_ > 0 && C_ > 0 && inner_ > 0, "decoder: expected rows and widths");
    STD_TORCH_CHECK(activation_ >= kGelu && activation_ <= kSiluGate, "decoder: unknown activation");
    STD_TORCH_CHECK(static_cast<int64_t>(parts.size()) == layers * static_cast<int64_t>(kParts) + 3 &&
                        static_cast<int64_t>(constants.size()) == layers + 1,
                    "decoder: parts or constants do not belong to ", layers, " layers");
    hidden_width_ = hidden_width(activation_, inner_);
    eps_ = static_cast<float>(constants[0]);
    const bool interleaved = sizes[7] != 0;
    attention_.emplace(x, cache, std::move(lengths), places, sizes[0], sizes[5], sizes[6], interleaved);
    const ScalarType dtype = x.scalar_type();
    blocks_.reserve(static_cast<size_t>(layers));
    for (size_t layer = 0; layer < static_cast<size_t>(layers); ++layer) {
      blocks_.emplace_back(&parts[layer * kParts], static_cast<float>(constants[layer + 1]), activation_, C_,
                           sizes[5], attention_->width(), attention_->mixed(), inner_, dtype);
      STD_TORCH_CHECK(!interleaved || !blocks_.back().query_norm,
                      "decoder: interleaved heads have no norms of their own");
    }
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
    ends.reserve(blocks_.size() * kPhases + 2);
    int64_t count = 0;
    const auto add = [&](int64_t items) { ends.push_back(count += items); };
    for (const Block& block : blocks_) {
      add(row_items_);
      add(block.qkv.items(rows_));
      add(attention_->turns() || block.query_norm ? row_items_ : 0);
      add(attention_->store_items());
      add(attention_->attend_items());
      add(attention_->merge_items());
      add(preparations(block.out));
      add(block.out.items(rows_));
      add(row_items_);
      add(block.up.items(rows_));
      add(activation_ == kSiluGate ? row_items_ : preparations(block.down));
      add(block.down.items(rows_));
    }
    add(n_wanted_);
    add(head_ && n_wanted_ ? head_->items(n_wanted_) : 0);
    run_phases(
        ends, [this](size_t phase, int64_t item) { this->item(phase, item); },
        [this](size_t phase, int64_t item, int n) { return this->fetch(phase, item, n); });
  }

 private:
  // Places of everything between the layers, in memory that the caller holds.
  Tensor lay_out() {
    void *lse, *partial;
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
                 {&second_update_, parallel_ ? rows_ * C_ * element_ : 0},
                 {&updates_, parallel_ ? rows_ * C_ * element_ : 0},
                 {&qkv_, rows_ * attention_->width() * element_},
                 {&mixed_, rows_ * attention_->mixed() * element_},
                 {&hidden_, rows_ * hidden_width_ * element_},
                 {&gated_, rows_ * inner_ * element_},
                 {head_ ? &last_ : &logits_, head_ ? n_wanted_ * C_ * element_ : 0},
                 {&room_, room},
                 {&lse, attention_->lse_bytes()},
                 {&partial, attention_->partial_bytes()}};
    int64_t bytes = 0;
    for (const auto& part : parts) bytes += (part.bytes + 63) / 64 * 64;
    const Tensor memory = empty_cpu(std::vector<int64_t>{bytes}, ScalarType::Byte);
    char* at = static_cast<char*>(memory.mutable_data_ptr());
    for (const auto& part : parts) {
      *part.place = at;
      at += (part.bytes + 63) / 64 * 64;
    }
    attention_->place(qkv_, mixed_, lse, partial);
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
    if (layer == blocks_.size()) return kind == 0 ? close(i) : run(*head_, last_, logits_, n_wanted_, i);
    const Block& block = blocks_[layer];
    const void* const wide = activation_ == kSiluGate ? gated_ : hidden_;
    switch (static_cast<Phase>(kind)) {
      case kNorm1:
        norm(block.norm_1, layer == 0 ? kGiven : kMade, i);
        return prepare(block.qkv, normed_, i);
      case kQkv:
        return run(block.qkv, normed_, qkv_, rows_, i);
      case kRotate:
        return each_row(i, [&](int64_t row) { attention_->rotate(block, row, eps_); });
      case kStore:
        return attention_->store(layer, block.scale, i);
      case kAttend:
        return attention_->attend(layer, block.scale, i);
      case kMerge:
        return attention_->merge(layer, block.scale, i);
      case kOutInput:
        return prepare(block.out, mixed_, i);
      case kOut:
        return run(block.out, mixed_, update_, rows_, i);
      case kNorm2:
        norm(block.norm_2, parallel_ ? kNone : kMade, i);
        return prepare(block.up, normed_, i);
      case kUp:
        return up(block.up, i);
      case kDownInput:
        if (activation_ == kSiluGate) gate(i);
        return prepare(block.down, wide, i);
      case kDown:
        return run(block.down, wide, parallel_ ? second_update_ : update_, rows_, i);
      case kPhases:
        break;
    }
  }

  // The n-th part of an item's weights, into this core's cache; false where there is none.
  bool fetch(size_t phase, int64_t i, int n) const {
    const size_t layer = phase / kPhases, kind = phase % kPhases;
    if (layer == blocks_.size()) return kind == 1 && head_->fetch(n_wanted_, i, n);
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
    if (layer.preparations(rows_))
      layer.prepare(x, rows_, room_, i * row_block_, std::min(rows_, (i + 1) * row_block_));
  }

  void run(const LinearLayer& layer, const void* x, void* y, int64_t rows, int64_t i,
           bool with_bias = true) const {
    layer.run(x, y, rows, room_, with_bias, i, i + 1);
  }

  enum Update { kGiven, kMade, kNone };

  // The norm of stream + update, of which the sum becomes the stream; or of the stream alone.
  void norm(const Norm& norm, Update update, int64_t i) const {
    const int64_t begin = i * row_block_, end = std::min(rows_, (i + 1) * row_block_);
    cpu::NormArgs a = norm.args(C_, eps_, dtype_);
    a.rms = rms_;
    a.y = normed_;
    if (update == kNone) {
      a.x = stream_, a.x_rows = dense_rows(rows_, C_);
    } else {
      a.x = update == kGiven ? first_update_.data() : made(0, begin, end, normed_);
      a.x_rows = update == kGiven ? first_update_.layout() : dense_rows(rows_, C_);
      a.residual = update == kGiven ? x_.data() : stream_;
      a.residual_rows = update == kGiven ? x_.layout() : dense_rows(rows_, C_);
      a.total = stream_;
    }
    cpu::active().norm(a, begin, end);
  }

  // The update of a block, whose rows [begin, end) behind `first` are there; those of attention and MLP side
  // by side are added first, as a norm adds, whose own result goes to `unused`.
  const void* made(int64_t first, int64_t begin, int64_t end, void* unused) const {
    const int64_t offset = first * C_ * element_;
    if (!parallel_) return static_cast<char*>(update_) + offset;
    cpu::NormArgs a = final_->args(C_, eps_, dtype_);
    a.x = static_cast<char*>(update_) + offset;
    a.residual = static_cast<char*>(second_update_) + offset;
    a.x_rows = a.residual_rows = dense_rows(rows_ - first, C_);
    a.total = static_cast<char*>(updates_) + offset;
    a.y = unused;
    cpu::active().norm(a, begin, end);
    return a.total;
  }

  // The same before the head, of the i-th row that is wanted, and what the head needs of it.
  void close(int64_t i) const {
    const int64_t row = wanted_[static_cast<size_t>(i)], bytes = C_ * element_;
    cpu::NormArgs a = final_->args(C_, eps_, dtype_);
    a.rms = rms_;
    a.y = static_cast<char*>(last_) + i * bytes;
    a.x = made(row, 0, 1, a.y);
    a.residual = static_cast<char*>(stream_) + row * bytes;
    a.x_rows = a.residual_rows = dense_rows(1, C_);
    a.total = static_cast<char*>(normed_) + row * bytes;
    cpu::active().norm(a, 0, 1);
    if (head_ && head_->preparations(n_wanted_)) head_->prepare(last_, n_wanted_, room_, i, i + 1);
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
  int64_t C_, rows_, n_wanted_, row_block_, row_items_, inner_, V_, hidden_width_;
  Activation activation_;
  bool rms_, parallel_;  // attention and MLP side by side, each on its norm of the stream
  float eps_;
  std::vector<Block> blocks_;
  std::optional<StackAttention> attention_;
  std::optional<Norm> final_;
  std::optional<LinearLayer> head_;
  void *stream_, *normed_, *update_, *second_update_, *updates_, *qkv_, *mixed_, *hidden_, *gated_, *last_,
      *logits_, *room_;
};

// x and update (B,T,C), a cache (layers,B,G,blocks,bytes) that each row fills from its length on → logits
// (n,V) of the n wanted rows of B and T, or (n,C) before the head where that is empty. sizes: H, inner width,
// V, activation, RMS norm or not, D, type of the cache, heads interleaved or not, blocks parallel or not;
// constants: eps, each layer's scale.
Tensor decoder(const Tensor& x, const Tensor& update, const Tensor& cache, std::vector<int64_t> lengths,
               std::vector<int64_t> rows, std::vector<Tensor> parts, std::vector<Tensor> places,
               std::vector<int64_t> sizes, std::vector<double> constants) {
  const int64_t n = static_cast<int64_t>(rows.size());
  Stack stack(x, update, cache, std::move(lengths), std::move(rows), parts, places, sizes, constants);
  const Tensor result = empty_cpu(std::vector<int64_t>{n, stack.columns()}, x.scalar_type());
  stack.run(result.mutable_data_ptr());
  return result;
}

}  // namespace
}  // namespace llmcli

STABLE_TORCH_LIBRARY_IMPL(llmcli, CPU, m) { m.impl("decoder", TORCH_BOX(&llmcli::decoder)); }
