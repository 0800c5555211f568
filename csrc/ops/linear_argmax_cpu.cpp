// llmcli::linear_argmax and llmcli::linear_screen on CPU tensors: the likeliest token from panels of the
// vocabulary projection, of those alone that may have it where a copy in eight bits tells.
#include <cstring>
#include <tuple>

#include "linear.h"
#include "phases.h"
#include "rows.h"
#include "weights.h"

namespace llmcli {
namespace {

constexpr int64_t kPanel = LinearLayer::kPanel;

// packed of (V, C) → its copy for linear_quantized, and errors (2, V rounded up to panels).
std::tuple<Tensor, Tensor> linear_screen(const Tensor& packed, int64_t inputs, int64_t outputs) {
  STD_TORCH_CHECK(inputs > 4, "linear_screen: expected more than 4 inputs, got ", inputs);
  const LinearLayer layer(packed, nullptr, inputs, outputs, packed.scalar_type());
  cpu::ScreenPackArgs a{};
  a.dtype = dtype_of(packed, "linear_screen");
  a.inputs = inputs;
  a.panels = LinearLayer::panels(outputs);
  const Tensor copy = empty_weights(a.panels * cpu::quantized_panel_bytes(inputs, 8), ScalarType::Byte);
  const Tensor errors = empty_cpu(std::vector<int64_t>{2, a.panels * kPanel}, ScalarType::Float);
  a.packed = packed.const_data_ptr();
  a.copy = static_cast<uint8_t*>(copy.mutable_data_ptr());
  a.errors = static_cast<float*>(errors.mutable_data_ptr());
  const auto kernel = cpu::active().screen_pack;
  parallel(a.panels, static_cast<double>(inputs * kPanel),
           [&](int64_t begin, int64_t end) { kernel(a, begin, end); });
  return {copy, errors};
}

// One call of linear_argmax: rows x (N, C) against the first `limit` outputs of a head.
class Likeliest {
 public:
  Likeliest(const Tensor& x, const Tensor& packed, const Tensor& copy, const Tensor& errors, int64_t outputs,
            int64_t limit)
      : x_(x.const_data_ptr()),
        N_(x.size(0)),
        limit_(limit),
        head_(packed, nullptr, x.size(1), outputs, x.scalar_type()),
        copy_(copy, nullptr, x.size(1), outputs, x.scalar_type()),
        blocks_(LinearLayer::blocks(N_)),
        panels_(LinearLayer::panels(limit)) {
    const int64_t padded = LinearLayer::panels(outputs) * kPanel;
    STD_TORCH_CHECK(limit > 0 && limit <= outputs, "linear_argmax: expected a limit of 1 to ", outputs,
                    ", got ", limit);
    STD_TORCH_CHECK(copy.scalar_type() == ScalarType::Byte && x.size(1) > 4 &&
                        errors.scalar_type() == ScalarType::Float && errors.is_contiguous() &&
                        errors.numel() == 2 * padded && packed.scalar_type() == x.scalar_type(),
                    "linear_argmax: expected a head in x's dtype and its linear_screen");
    screen_.lost = static_cast<const float*>(errors.const_data_ptr());
    screen_.kept = screen_.lost + padded;
    screen_.panels = panels_;
    screen_.dtype = dtype_of(x, "linear_argmax");
    const struct {
      void* place;
      int64_t bytes;
    } parts[] = {
        {&highest_, N_ * panels_ * 4},      {&place_, N_ * panels_ * 8}, {&screen_.lower, N_ * panels_ * 4},
        {&screen_.upper, N_ * panels_ * 4}, {&screen_.reach, N_ * 8},    {&screen_.wanted, blocks_ * panels_},
        {&list_, blocks_ * panels_ * 8},    {&listed_, blocks_ * 8},     {&room_, copy_.room(N_)}};
    int64_t bytes = 0;
    for (const auto& part : parts) bytes += (part.bytes + 63) / 64 * 64;
    memory_ = empty_cpu(std::vector<int64_t>{bytes}, ScalarType::Byte);
    char* at = static_cast<char*>(memory_.mutable_data_ptr());
    for (const auto& part : parts) {
      std::memcpy(part.place, &at, sizeof at);
      at += (part.bytes + 63) / 64 * 64;
    }
  }

  // index and highest (N); returns how many panels of the head were multiplied.
  int64_t run(int64_t* index, float* highest) {
    const int64_t counts[] = {N_, panels_ * blocks_, blocks_, kShares * blocks_, N_};
    std::vector<int64_t> ends;
    int64_t count = 0;
    for (const int64_t items : counts) ends.push_back(count += items);
    run_phases(
        ends, [&](size_t phase, int64_t i) { item(phase, i, index, highest); },
        [&](size_t phase, int64_t i, int n) { return phase == 1 && copy_.fetch(N_, i, n); });
    int64_t multiplied = 0;
    for (int64_t block = 0; block < blocks_; ++block) multiplied += listed_[block];
    return multiplied;
  }

 private:
  static constexpr int64_t kShares = 16;  // of a block's panels that may have its rows' highest

  struct Span {
    int64_t begin, rows;
  };
  Span span(int64_t block) const {
    const int64_t begin = block * LinearLayer::kRows;
    return {begin, std::min(N_ - begin, LinearLayer::kRows)};
  }
  int64_t columns(int64_t panel) const { return std::min(limit_ - panel * kPanel, kPanel); }

  void item(size_t phase, int64_t i, int64_t* index, float* highest) const {
    const int64_t block = i % blocks_;
    switch (phase) {
      case 0:
        copy_.prepare(x_, N_, room_, i, i + 1);
        return cpu::active().screen_rows(copy_.prepared(x_, N_, room_), screen_.reach, i, i + 1);
      case 1:
        return bound(i / blocks_, block);
      case 2:
        return choose(i);
      case 3:
        for (int64_t n = i / blocks_; n < listed_[block]; n += kShares)
          multiply(list_[block * panels_ + n], block);
        return;
      default:
        return close(i, index, highest);
    }
  }

  // Between which numbers a panel's highest lies, in every row of a block.
  void bound(int64_t panel, int64_t block) const {
    alignas(64) float logits[LinearLayer::kRows * kPanel];
    const Span rows = span(block);
    cpu::ScreenArgs a = screen_;
    a.panel = panel;
    a.columns = columns(panel);
    a.first_row = rows.begin;
    a.logits = logits;
    copy_.run_part(nullptr, logits, true, N_, room_, rows.begin, rows.rows, panel * kPanel, a.columns);
    cpu::active().screen_panel(a, rows.begin, rows.begin + rows.rows);
  }

  // The panels that a block needs.
  void choose(int64_t block) const {
    const Span rows = span(block);
    cpu::ScreenArgs a = screen_;
    a.wanted += block * panels_;
    std::fill(a.wanted, a.wanted + panels_, uint8_t{0});
    cpu::active().screen_choose(a, rows.begin, rows.begin + rows.rows);
    int64_t n = 0;
    for (int64_t panel = 0; panel < panels_; ++panel)
      if (a.wanted[panel]) list_[block * panels_ + n++] = panel;
    listed_[block] = n;
    std::fill(highest_ + rows.begin * panels_, highest_ + (rows.begin + rows.rows) * panels_, -INFINITY);
  }

  // A panel's highest of every row of a block, among logits as `linear` gives them.
  void multiply(int64_t panel, int64_t block) const {
    alignas(64) float logits[LinearLayer::kRows * kPanel];
    float best[LinearLayer::kRows];
    int64_t at[LinearLayer::kRows];
    const Span rows = span(block);
    cpu::ArgmaxArgs a{};
    a.x = logits;
    a.size = columns(panel);
    a.x_rows = dense_rows(rows.rows, a.size);
    a.dtype = screen_.dtype;
    a.highest = best;
    a.index = at;
    head_.run_part(x_, logits, false, N_, nullptr, rows.begin, rows.rows, panel * kPanel, a.size);
    cpu::active().argmax(a, 0, rows.rows);
    for (int64_t row = 0; row < rows.rows; ++row) {
      highest_[(rows.begin + row) * panels_ + panel] = best[row];
      place_[(rows.begin + row) * panels_ + panel] = panel * kPanel + at[row];
    }
  }

  void close(int64_t row, int64_t* index, float* highest) const {
    cpu::ArgmaxArgs a{};
    a.x = highest_;
    a.size = panels_;
    a.x_rows = dense_rows(N_, panels_);
    a.dtype = cpu::DType::f32;
    a.highest = highest;
    a.index = index;
    cpu::active().argmax(a, row, row + 1);
    // Where all are -infinity, the panel that the index names may not have been multiplied.
    index[row] = highest[row] == -INFINITY ? 0 : place_[row * panels_ + index[row]];
  }

  const void* x_;
  int64_t N_, limit_;
  LinearLayer head_, copy_;
  int64_t blocks_, panels_;
  cpu::ScreenArgs screen_{};
  Tensor memory_;
  float* highest_;  // (N, panels)
  int64_t* place_;  // (N, panels): where it stands
  int64_t* list_;   // (blocks, panels): those that a block needs, listed_[block] of them
  int64_t* listed_;
  void* room_;
};

// x (N, C), packed of (V, C) and its linear_screen → the first of the highest logits below `limit`, (N)
// int64, that logit, (N) float32, and how many panels of 64 rows of the head were multiplied, (1) int64.
std::tuple<Tensor, Tensor, Tensor> linear_argmax(const Tensor& x_, const Tensor& packed, const Tensor& copy,
                                                 const Tensor& errors, int64_t outputs, int64_t limit) {
  STD_TORCH_CHECK(x_.dim() == 2, "linear_argmax: expected x (N,C)");
  const Tensor x = torch::stable::contiguous(x_);
  const std::vector<int64_t> rows{x.size(0)};
  const Tensor index = empty_cpu(rows, ScalarType::Long), highest = empty_cpu(rows, ScalarType::Float);
  const Tensor multiplied = empty_cpu(std::vector<int64_t>{1}, ScalarType::Long);
  Likeliest likeliest(x, packed, copy, errors, outputs, limit);
  *static_cast<int64_t*>(multiplied.mutable_data_ptr()) = likeliest.run(
      static_cast<int64_t*>(index.mutable_data_ptr()), static_cast<float*>(highest.mutable_data_ptr()));
  return {index, highest, multiplied};
}

}  // namespace
}  // namespace llmcli

STABLE_TORCH_LIBRARY_IMPL(llmcli, CPU, m) {
  m.impl("linear_screen", TORCH_BOX(&llmcli::linear_screen));
  m.impl("linear_argmax", TORCH_BOX(&llmcli::linear_argmax));
}
