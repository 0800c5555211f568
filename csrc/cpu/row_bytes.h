// Numbers that share a scale brought to eight bits: q = round(x * (127 / max |x|)), scale = max |x| / 127. A
// group of a linear layer's inputs, a position of a cache.
#pragma once

namespace llmcli::cpu::LLMCLI_ISA {

constexpr float kSmallestRow = 1e-30f;  // smaller ones count as zeros: 127 / max is finite

// n numbers to q and the sum of q; returns the scale, NaN (and q 0) where there is NaN or infinity.
template <typename T>
LLMCLI_INLINE float row_to_bytes(const T* x, int64_t n, int8_t* q, int32_t* sum) {
  F top = zero(), faults = zero();
  for (int64_t i = 0; i < n; i += N) {
    const F v = load_n(x + i, n - i);
    top = max(top, max(v, sub(zero(), v)));
    faults = add(faults, mul(v, zero()));
  }
  const float largest = reduce_max(top);
  const bool finite = reduce_add(faults) == 0.0f;
  *sum = 0;
  if (!finite || largest < kSmallestRow) {
    std::memset(q, 0, static_cast<size_t>(n));
    return finite ? 0.0f : from_bits(0x7fc00000u);
  }
  const F inverse = set(127.0f / largest);
  F total = zero();
  for (int64_t i = 0; i < n; i += N) {
    const F v = round(mul(load_n(x + i, n - i), inverse));
    store_bytes(q + i, v, n - i);
    total = add(total, v);
  }
  *sum = static_cast<int32_t>(reduce_add(total));
  return largest / 127.0f;
}

}  // namespace llmcli::cpu::LLMCLI_ISA
