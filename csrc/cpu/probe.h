// White-box probes: the elementary functions one vector at a time, and the arithmetic peak of one thread.
#pragma once

namespace llmcli::cpu::LLMCLI_ISA {

// y = f(x) elementwise over n floats; false for an unknown name.
bool elementary(const char* name, const float* x, float* y, int64_t n) {
  const auto over = [&](auto f) {
    for (int64_t i = 0; i < n; i += N) store_n(y + i, f(load_n(x + i, n - i)), n - i);
    return true;
  };
  if (std::strcmp(name, "exp") == 0) return over([](F v) LLMCLI_INLINE_BODY { return exp_nonpositive(v); });
  if (std::strcmp(name, "exp_short") == 0)
    return over([](F v) LLMCLI_INLINE_BODY { return exp_nonpositive<4>(v); });
  if (std::strcmp(name, "half_erfc") == 0) return over([](F v) LLMCLI_INLINE_BODY { return half_erfc(v); });
  if (std::strcmp(name, "tanh") == 0) return over([](F v) LLMCLI_INLINE_BODY { return tanh(v); });
  return false;
}

// Multiplies and adds in independent chains, enough of them to hide the latency of every unit: `rounds` steps
// of each. Returns the operations done, 0 where the instruction set has no instruction for this type.
double multiply_add(DType dtype, int64_t rounds) {
  constexpr int kChains = 12;
  F sum[kChains];
  for (int c = 0; c < kChains; ++c) sum[c] = set(static_cast<float>(c));
  double each = 0;
  if (dtype == DType::f32) {
    const F a = set(0.5f), b = set(1.0f);
    for (int64_t r = 0; r < rounds; ++r)
      for (int c = 0; c < kChains; ++c) sum[c] = fma(sum[c], a, b);
    each = 2.0 * N;
  }
#if defined(LLMCLI_HAS_BF16)
  if (dtype == DType::bf16) {
    const __m512bh a = (__m512bh)_mm512_set1_epi16(0x3f00), b = (__m512bh)_mm512_set1_epi16(0x3f80);
    for (int64_t r = 0; r < rounds; ++r)
      for (int c = 0; c < kChains; ++c) sum[c] = _mm512_dpbf16_ps(sum[c], a, b);
    each = 4.0 * N;
  }
#endif
  F total = zero();
  for (int c = 0; c < kChains; ++c) total = add(total, sum[c]);
  // The comparison keeps the loop alive; the sum is never NaN.
  const float result = reduce_add(total);
  return result == result ? each * kChains * static_cast<double>(rounds) : -1.0;
}

}  // namespace llmcli::cpu::LLMCLI_ISA
