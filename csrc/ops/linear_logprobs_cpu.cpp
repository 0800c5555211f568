// llmcli::linear_logprobs on CPU tensors: the vocabulary projection in parts that a core reduces while its
// cache holds them.
#include <tuple>

#include "linear.h"
#include "phases.h"
#include "rows.h"

namespace llmcli {
namespace {

// x (N, C), packed of (V, C), targets (N) → log p of each target (N) float32, and the likeliest tokens (N). A
// cap of 0 is none.
std::tuple<Tensor, Tensor> linear_logprobs(const Tensor& x_, const Tensor& packed, const Tensor& targets_,
                                           int64_t outputs, double cap) {
  STD_TORCH_CHECK(x_.dim() == 2 && outputs > 0, "linear_logprobs: expected x (N,C) and at least one output");
  STD_TORCH_CHECK(
      targets_.dim() == 1 && targets_.size(0) == x_.size(0) && targets_.scalar_type() == ScalarType::Long,
      "linear_logprobs: expected int64 targets (N)");
  const Tensor x = torch::stable::contiguous(x_), targets = torch::stable::contiguous(targets_);
  const int64_t N = x.size(0);
  const LinearLayer layer(packed, nullptr, x.size(1), outputs, x.scalar_type());
  const int64_t* const wanted = static_cast<const int64_t*>(targets.const_data_ptr());
  for (int64_t row = 0; row < N; ++row)
    STD_TORCH_CHECK(wanted[row] >= 0 && wanted[row] < outputs, "linear_logprobs: expected targets from 0 to ",
                    outputs - 1, ", got ", wanted[row]);
  const Tensor logprob = empty_cpu(std::vector<int64_t>{N}, ScalarType::Float);
  const Tensor best = empty_cpu(std::vector<int64_t>{N}, ScalarType::Long);

  cpu::LogprobArgs a{};
  a.parts = (outputs + cpu::kLogprobColumns - 1) / cpu::kLogprobColumns;
  const int64_t left = N * a.parts * 4;
  const Tensor memory = empty_cpu(std::vector<int64_t>{3 * left + layer.room(N)}, ScalarType::Byte);
  char* const at = static_cast<char*>(memory.mutable_data_ptr());
  a.highest = reinterpret_cast<float*>(at);
  a.total = reinterpret_cast<float*>(at + left);
  a.place = reinterpret_cast<int32_t*>(at + 2 * left);
  void* const room = at + 3 * left;
  a.targets = wanted;
  a.logprob = static_cast<float*>(logprob.mutable_data_ptr());
  a.best = static_cast<int64_t*>(best.mutable_data_ptr());

  const void* const from = x.const_data_ptr();
  const int64_t blocks = LinearLayer::blocks(N), prepared = layer.preparations(N) ? blocks : 0;
  const auto item = [&](size_t phase, int64_t i) {
    const int64_t row = i % blocks * LinearLayer::kRows, end = std::min(N, row + LinearLayer::kRows);
    if (phase == 0) return layer.prepare(from, N, room, row, end);
    if (phase == 2) return cpu::active().logprobs(a, row, end);
    cpu::LogprobArgs part = a;
    part.part = i / blocks;
    part.first_row = row;
    const int64_t column = part.part * cpu::kLogprobColumns;
    part.columns = std::min(outputs - column, cpu::kLogprobColumns);
    float* const logits = static_cast<float*>(scratch(LinearLayer::kRows * cpu::kLogprobColumns * 4));
    layer.run_part(from, logits, true, N, room, row, end - row, column, part.columns);
    if (cap > 0) {
      cpu::SoftcapArgs s{};
      s.x = s.y = logits;
      s.size = part.columns;
      s.cap = static_cast<float>(cap);
      s.dtype = cpu::DType::f32;
      cpu::active().softcap(s, 0, end - row);
    }
    part.logits = logits;
    cpu::active().logprobs_part(part, row, end);
  };
  // The rows vary fastest, so that the weights of a part stay in cache over its blocks of rows.
  run_phases({prepared, prepared + blocks * a.parts, prepared + blocks * (a.parts + 1)}, item,
             [](size_t, int64_t, int) { return false; });
  return {logprob, best};
}

}  // namespace
}  // namespace llmcli

STABLE_TORCH_LIBRARY_IMPL(llmcli, CPU, m) { m.impl("linear_logprobs", TORCH_BOX(&llmcli::linear_logprobs)); }
