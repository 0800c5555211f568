// The Product of bfloat16 operands (see tile.h): pairs along the depth, multiplied and summed into float32 by
// one instruction (AVX512-BF16), which rounds the two additions of a pair and reads subnormals as zero.
#pragma once

namespace llmcli::cpu::LLMCLI_ISA {

struct BFloat16Product {
  using Element = bf16;
  static constexpr int kPair = 2, kUnit = 2, kRows = kTileRows;
  struct Session {};

  static LLMCLI_INLINE F broadcast(const bf16* a) {
    int32_t pair;
    std::memcpy(&pair, a, 4);
    return _mm512_castsi512_ps(_mm512_set1_epi32(pair));
  }
  static LLMCLI_INLINE F load(const bf16* b) { return _mm512_loadu_ps(reinterpret_cast<const float*>(b)); }
  static LLMCLI_INLINE F multiply_add(F a, F b, F c) { return _mm512_dpbf16_ps(c, (__m512bh)a, (__m512bh)b); }
  static LLMCLI_INLINE void store(bf16* p, F x) { LLMCLI_ISA::store(p, x); }

  // Pairs out of two depths, exact where the numbers are bfloat16's.
  static LLMCLI_INLINE F join(F low, F high) {
    const __m512i odd =
        _mm512_and_si512(_mm512_castps_si512(high), _mm512_set1_epi32(static_cast<int>(0xffff0000u)));
    return _mm512_castsi512_ps(_mm512_or_si512(_mm512_srli_epi32(_mm512_castps_si512(low), 16), odd));
  }
  static LLMCLI_INLINE void store_rows(bf16* to, int64_t, F low, F high) {
    LLMCLI_ISA::store(reinterpret_cast<float*>(to), join(low, high));
  }

  template <typename T>
  static constexpr bool in_place(const T*) {
    return false;
  }
  static LLMCLI_INLINE void clear_after(bf16* packed, int64_t columns, int64_t n) {
    if (n % 2 == 0) return;
    bf16* pair = packed + n / 2 * columns * 2;
    for (int64_t i = 0; i < columns; ++i) pair[2 * i + 1].bits = 0;
  }

  static LLMCLI_INLINE F words(const bf16* p) { return load(p); }
  static LLMCLI_INLINE F words(const bf16* p, int64_t n) {
    const __mmask32 m = n >= 32 ? ~0u : n > 0 ? (1u << n) - 1u : 0u;
    return _mm512_castsi512_ps(_mm512_maskz_loadu_epi16(m, p));
  }
  static LLMCLI_INLINE void pack_row(bf16* to, const bf16* from, int64_t n) {
    for (int64_t i = 0; i < n; i += 2 * N)
      LLMCLI_ISA::store(reinterpret_cast<float*>(to + i), words(from + i, n - i));
  }
  static LLMCLI_INLINE void pack_depths(bf16* to, int64_t columns, const bf16* from, int64_t stride,
                                        int64_t depth, int64_t n) {
    for (int64_t k = 0; k < depth; k += 2) {
      const bf16* const row = from + k * stride;
      for (int64_t i = 0; i < n; i += N) {
        const __mmask16 m = lanes_below(n - i), odd = k + 1 < depth ? m : 0;
        const __m512i low = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(m, row + i));
        const __m512i high =
            _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(odd, row + (odd ? stride : 0) + i));
        _mm512_storeu_si512(to + k * columns + 2 * i, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
      }
    }
  }
};

#if !defined(LLMCLI_HAS_AMX)
template <>
struct ProductOf<bf16> {
  using type = BFloat16Product;
};
#endif

}  // namespace llmcli::cpu::LLMCLI_ISA
