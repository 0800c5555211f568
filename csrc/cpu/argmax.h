// The highest number of each row and where it first stands; NaN is higher than all. Traffic: the row once, in
// blocks of kArgmaxBlock that are looked at one by one only where something in them is higher than all before
// them, which of V numbers in any order happens ln(V / kArgmaxBlock) times.
#pragma once
#include "vec_loop.h"

namespace llmcli::cpu::LLMCLI_ISA {

constexpr int64_t kArgmaxBlock = 256;

// Whether one of n numbers is above `best` or not finite.
template <typename T>
LLMCLI_INLINE bool argmax_above(const T* x, int64_t n, float best) {
  constexpr int kChains = 4;
  F top[kChains], faults[kChains];
  for (int j = 0; j < kChains; ++j) top[j] = set(best), faults[j] = zero();
  int64_t i = 0;
  const auto take = [&](int j, F v) LLMCLI_INLINE_BODY {
    top[j] = max(top[j], v);
    faults[j] = add(faults[j], mul(v, zero()));
  };
  for (; i + kChains * N <= n; i += kChains * N)
    LLMCLI_UNROLL for (int j = 0; j < kChains; ++j) take(j, load(x + i + j * N));
  for (; i < n; i += N) take(0, load_n(x + i, n - i));
  return reduce_max(max(max(top[0], top[1]), max(top[2], top[3]))) > best ||
         !(reduce_add(add(add(faults[0], faults[1]), add(faults[2], faults[3]))) == 0.0f);
}

template <typename T>
void argmax_row(const T* x, int64_t size, float* highest, int64_t* index) {
  float best = -INFINITY;
  *index = 0;
  for (int64_t begin = 0; begin < size && best == best; begin += kArgmaxBlock) {
    const int64_t end = begin + kArgmaxBlock < size ? begin + kArgmaxBlock : size;
    if (!argmax_above(x + begin, end - begin, best)) continue;
    for (int64_t i = begin; i < end && best == best; ++i) {
      const float v = to_float(x[i]);
      if (!(v <= best)) best = v, *index = i;
    }
  }
  *highest = best;
}

void argmax(const ArgmaxArgs& a, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const int64_t at = offset_of(a.x_rows, row);
    switch (a.dtype) {
      case DType::f32:
        argmax_row(static_cast<const float*>(a.x) + at, a.size, a.highest + row, a.index + row);
        break;
      case DType::bf16:
        argmax_row(static_cast<const bf16*>(a.x) + at, a.size, a.highest + row, a.index + row);
        break;
      case DType::f16:
        argmax_row(static_cast<const f16*>(a.x) + at, a.size, a.highest + row, a.index + row);
        break;
    }
  }
}

}  // namespace llmcli::cpu::LLMCLI_ISA
