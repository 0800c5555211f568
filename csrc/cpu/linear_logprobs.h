// Log-probabilities of wanted tokens from logits that come in parts: rows × kLogprobColumns of them at a
// time, which stay in cache and are never seen again. A part leaves of each row its highest logit m_p, where
// that first stands, and t_p = sum of e^(x - m_p); then log p = (x[target] - m) - log(sum of t_p e^(m_p -
// m)), with m the highest of all, so that likely tokens lose nothing. Order: within a part as every sum of a
// row, then part by part; it depends on V alone. Traffic: a part twice, from L1; 12 bytes of each part once.
#pragma once
#include "argmax.h"
#include "softmax.h"

namespace llmcli::cpu::LLMCLI_ISA {

// Where `highest`, the largest of n numbers, first stands; 0 where it is NaN.
LLMCLI_INLINE int64_t logprob_place(const float* x, int64_t n, float highest) {
  alignas(64) float lanes[N];
  for (int i = 0; i < N; ++i) lanes[i] = static_cast<float>(i);
  const F lane = load(lanes), top = set(highest);
  F first = set(static_cast<float>(n));
  for (int64_t i = (n - 1) / N * N; i >= 0; i -= N) {
    const F below = load_up_to(x + i, n - i, -INFINITY);
    first = select(less(below, top), first, min(first, add(lane, set(static_cast<float>(i)))));
  }
  const int64_t place = static_cast<int64_t>(-reduce_max(sub(zero(), first)));
  return place < n ? place : 0;
}

void logprobs_part(const LogprobArgs& a, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const float* const x = a.logits + (row - a.first_row) * a.columns;
    const float m = softmax_max<float, Score::plain>(x, nullptr, zero(), a.columns);
    const F shift = set(m == -INFINITY ? 0.0f : m);
    const int64_t at = row * a.parts + a.part;
    a.highest[at] = m;
    a.total[at] = sum_vectors(a.columns, [&](int64_t i, int64_t n) LLMCLI_INLINE_BODY {
      return exp_nonpositive(sub(load_up_to(x + i, n, -INFINITY), shift));
    });
    const int64_t before = a.part * kLogprobColumns, target = a.targets[row] - before;
    a.place[at] = static_cast<int32_t>(before + logprob_place(x, a.columns, m));
    if (target >= 0 && target < a.columns) a.logprob[row] = x[target];
  }
}

void logprobs(const LogprobArgs& a, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const float *const highest = a.highest + row * a.parts, *const totals = a.total + row * a.parts;
    float m;
    int64_t part;
    argmax_row(highest, a.parts, &m, &part);
    const F shift = set(m == -INFINITY ? 0.0f : m);
    const float total = sum_vectors(a.parts, [&](int64_t i, int64_t n) LLMCLI_INLINE_BODY {
      return mul(load_up_to(totals + i, n),
                 exp_nonpositive(sub(load_up_to(highest + i, n, -INFINITY), shift)));
    });
    a.best[row] = a.place[row * a.parts + part];
    a.logprob[row] = (a.logprob[row] - (m == -INFINITY ? 0.0f : m)) - (total == 0.0f ? 0.0f : logf(total));
  }
}

}  // namespace llmcli::cpu::LLMCLI_ISA
