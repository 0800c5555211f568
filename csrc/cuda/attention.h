// What the kernels of attention share: which keys a row sees, and the arithmetic of a row. The keys of a row
// come in blocks of cpu::kAttentionBlock; each block has a maximum, a sum and a weighted sum of values of its
// own, and the blocks are merged in order. So a row has the same bits whether one kernel walks through the
// blocks or many take one each. Rows are those of all query heads of a key/value head, (T, H / G).
#pragma once
#include "kernels.h"
#include "launch.h"
#include "warp.h"

namespace llmcli::cuda {

using cpu::AttentionArgs;
constexpr int kKeys = static_cast<int>(cpu::kAttentionBlock);

// A key/value head of a batch row, by its number b * G + g.
struct Head {
  int64_t b, g, keys;  // keys: S, or k_lengths[b]

  __device__ Head(const AttentionArgs& a, int64_t number) : b(number / a.G), g(number % a.G), keys(a.S) {
    if (a.k_lengths) keys = min(max(a.k_lengths[b], int64_t{0}), a.S);
  }
  template <class T>
  __device__ const T* k(const AttentionArgs& a) const {
    return static_cast<const T*>(a.k) + b * a.k_b + g * a.k_g;
  }
  template <class T>
  __device__ const T* v(const AttentionArgs& a) const {
    return static_cast<const T*>(a.v) + b * a.v_b + g * a.v_g;
  }
};

// A row of a head; those past the last see nothing.
struct QueryRow {
  int64_t t, h;
  int limit;  // it sees the keys below
  bool there;

  __device__ QueryRow(const AttentionArgs& a, const Head& head, int64_t row) {
    const int group = static_cast<int>(a.H / a.G), number = static_cast<int>(row);  // below 2^31
    t = group == 1 ? number : number / group, h = head.g * group + (row - t * group);
    there = t < a.T;
    const int64_t sees = a.causal ? max(head.keys - a.T + 1 + t, int64_t{0}) : head.keys;
    limit = there ? static_cast<int>(sees) : 0;
  }
  template <class T>
  __device__ const T* q(const AttentionArgs& a, const Head& head) const {
    return static_cast<const T*>(a.q) + head.b * a.q_b + t * a.q_t + h * a.q_h;
  }
  template <class T>
  __device__ T* out(const AttentionArgs& a, const Head& head) const {
    return static_cast<T*>(a.out) + ((head.b * a.T + t) * a.H + h) * a.D;
  }
  __device__ float* lse(const AttentionArgs& a, const Head& head) const {
    return a.lse + (head.b * a.H + h) * a.T + t;
  }
};

// Blocks of keys that a row with this limit, and all rows before it, see.
__device__ inline int blocks_below(int limit) { return (limit + kKeys - 1) / kKeys; }

__device__ inline float bias_at(const AttentionArgs& a, const Head& head, int64_t number, int64_t key) {
  const QueryRow row(a, head, number);
  const int64_t i = head.b * a.bias_b + row.h * a.bias_h + row.t * a.bias_t + key * a.bias_s;
  switch (a.bias_dtype) {
    case cpu::DType::f32:
      return static_cast<const float*>(a.bias)[i];
    case cpu::DType::bf16:
      return to_float(static_cast<const bf16*>(a.bias)[i]);
    default:
      return to_float(static_cast<const f16*>(a.bias)[i]);
  }
}

// tanh within a few units in the last place: near zero by its series, else by its definition.
__device__ inline float tanh_fast(float x) {
  const float y = x * x;
  float series = fmaf(y, -1382.0f / 155925, 62.0f / 2835);
  series = fmaf(y, series, -17.0f / 315), series = fmaf(y, series, 2.0f / 15);
  series = fmaf(y, series, -1.0f / 3), series = fmaf(x * y, series, x);
  return fabsf(x) < 0.3f ? series : 1.0f - 2.0f / (1.0f + exp2_fast(x * (2.0f * kLog2E)));
}

// The score of a row, by its number, with a key in base 2, so that its weight is a power of 2.
__device__ inline float score_of(const AttentionArgs& a, const Head& head, int64_t row, int limit, int key,
                                 float product) {
  if (key >= limit) return -kInfinity;
  const bool capped = a.cap > 0.0f;
  const float score = capped ? tanh_fast(product * (a.scale / a.cap)) * (a.cap * kLog2E)
                             : multiply_alone(product, a.scale * kLog2E);
  return a.bias ? fmaf(bias_at(a, head, row, key), kLog2E, score) : score;
}

// What is subtracted from scores: nothing where all are -inf, which may still hide a NaN.
__device__ inline float shift_of(float maximum) { return maximum == -kInfinity ? 0.0f : maximum; }

// The maximum and the sum of a row so far, and what the next block does to its weighted sum of values:
// o * keep + block's * take.
struct Running {
  float maximum = -kInfinity, sum = 0.0f, keep = 0.0f, take = 0.0f;

  __device__ void merge(float block_maximum, float block_sum) {
    const float higher = fmaxf(maximum, block_maximum), shift = shift_of(higher);
    keep = exp2_fast(maximum - shift), take = exp2_fast(block_maximum - shift);
    maximum = higher;
    sum = fmaf(block_sum, take, sum * keep);
  }
  __device__ float merged(float o, float block) const { return fmaf(block, take, o * keep); }
  __device__ float inverse() const { return sum == 0.0f ? 0.0f : 1.0f / sum; }
  __device__ float lse() const { return sum == 0.0f ? -kInfinity : (maximum + log2f(sum)) / kLog2E; }
};

// Partial results of a head's block: (rows, D) weighted sums, then (rows, 2) maxima and sums.
__device__ inline float* partial_of(const AttentionArgs& a, int64_t head, int64_t block) {
  const int64_t rows = a.T * (a.H / a.G);
  return a.partial + (head * ((a.S + kKeys - 1) / kKeys) + block) * rows * (a.D + 2);
}

}  // namespace llmcli::cuda
