// Eight floats: AVX2 with FMA and F16C.
#pragma once
#include "half.h"

namespace llmcli::cpu::LLMCLI_ISA {

constexpr int N = 8;
using F = __m256;
using M = __m256;

LLMCLI_INLINE F set(float x) { return _mm256_set1_ps(x); }
LLMCLI_INLINE F zero() { return _mm256_setzero_ps(); }

LLMCLI_INLINE __m256i lanes_below(int64_t n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n < N ? n : N)),
                            _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
LLMCLI_INLINE __m128i narrow(F x, const bf16*) {
  const __m256i bits = _mm256_castps_si256(x);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded =
      _mm256_srli_epi32(_mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
  const __m256i quiet = _mm256_or_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(0x40));
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
  const __m256i y = _mm256_blendv_epi8(rounded, quiet, nan);
  return _mm_packus_epi32(_mm256_castsi256_si128(y), _mm256_extracti128_si256(y, 1));
}
LLMCLI_INLINE __m128i narrow(F x, const f16*) {
  return _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

LLMCLI_INLINE F load(const float* p) { return _mm256_loadu_ps(p); }
LLMCLI_INLINE F load(const int8_t* p) {
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}
LLMCLI_INLINE F load(const bf16* p) {
  const __m128i x = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(x), 16));
}
LLMCLI_INLINE F load(const f16* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
// The first n lanes from memory, the rest `fill`; nothing past p[n - 1] is touched.
LLMCLI_INLINE F load_n(const float* p, int64_t n, float fill = 0.0f) {
  const __m256i m = lanes_below(n);
  return _mm256_blendv_ps(set(fill), _mm256_maskload_ps(p, m), _mm256_castsi256_ps(m));
}
template <typename T>
LLMCLI_INLINE F load_n(const T* p, int64_t n, float fill = 0.0f) {
  T x[N] = {};
  std::memcpy(x, p, static_cast<size_t>(n < N ? n : N) * sizeof(T));
  return _mm256_blendv_ps(set(fill), load(x), _mm256_castsi256_ps(lanes_below(n)));
}
// Lane i of even and odd: elements 2 i and 2 i + 1.
LLMCLI_INLINE void load_pairs(const bf16* p, F* even, F* odd) {
  const __m256i x = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  *even = _mm256_castsi256_ps(_mm256_slli_epi32(x, 16));
  *odd = _mm256_castsi256_ps(_mm256_and_si256(x, _mm256_set1_epi32(static_cast<int>(0xffff0000u))));
}
LLMCLI_INLINE void store(float* p, F x) { _mm256_storeu_ps(p, x); }
template <typename T>
LLMCLI_INLINE void store(T* p, F x) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), narrow(x, p));
}
LLMCLI_INLINE void store_n(float* p, F x, int64_t n) { _mm256_maskstore_ps(p, lanes_below(n), x); }
template <typename T>
LLMCLI_INLINE void store_n(T* p, F x, int64_t n) {
  T y[N];
  store(y, x);
  std::memcpy(p, y, static_cast<size_t>(n < N ? n : N) * sizeof(T));
}

// True where a byte is not zero; lanes past the end are false.
LLMCLI_INLINE M load_bool(const unsigned char* p) {
  const __m256i x = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
  return _mm256_castsi256_ps(_mm256_cmpgt_epi32(x, _mm256_setzero_si256()));
}
LLMCLI_INLINE M load_bool_n(const unsigned char* p, int64_t n) {
  unsigned char x[N] = {};
  std::memcpy(x, p, static_cast<size_t>(n < N ? n : N));
  return load_bool(x);
}

LLMCLI_INLINE F add(F a, F b) { return _mm256_add_ps(a, b); }
LLMCLI_INLINE F sub(F a, F b) { return _mm256_sub_ps(a, b); }
LLMCLI_INLINE F mul(F a, F b) { return _mm256_mul_ps(a, b); }
LLMCLI_INLINE F div(F a, F b) { return _mm256_div_ps(a, b); }
LLMCLI_INLINE F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
LLMCLI_INLINE M less(F a, F b) { return _mm256_cmp_ps(a, b, _CMP_LT_OQ); }
LLMCLI_INLINE F select(M m, F a, F b) { return _mm256_blendv_ps(b, a, m); }  // m ? a : b
LLMCLI_INLINE F max(F a, F b) { return _mm256_max_ps(a, b); }                // b where either is NaN
LLMCLI_INLINE F min(F a, F b) { return _mm256_min_ps(a, b); }
LLMCLI_INLINE F sqrt(F x) { return _mm256_sqrt_ps(x); }
LLMCLI_INLINE float reduce_add(F x) {
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
LLMCLI_INLINE float reduce_max(F x) {
  __m128 s = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  s = _mm_max_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
}
// 2^k from the k + 127 that stands in the lowest bits of t.
LLMCLI_INLINE F power_of_bits(F t) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(t), 23));
}
// x * 2^n for integral n, where neither x nor the result is subnormal.
LLMCLI_INLINE F ldexp(F x, F n) {
  return _mm256_castsi256_ps(
      _mm256_add_epi32(_mm256_castps_si256(x), _mm256_slli_epi32(_mm256_cvtps_epi32(n), 23)));
}
// r[i][j] becomes r[j][i].
LLMCLI_INLINE void transpose(F (&r)[N]) {
  F t[N];
  LLMCLI_UNROLL for (int i = 0; i < N; i += 4) {  // 4 x 4 blocks of floats inside each 128-bit lane
    const F a = _mm256_unpacklo_ps(r[i], r[i + 1]), b = _mm256_unpackhi_ps(r[i], r[i + 1]);
    const F c = _mm256_unpacklo_ps(r[i + 2], r[i + 3]), d = _mm256_unpackhi_ps(r[i + 2], r[i + 3]);
    t[i] = _mm256_shuffle_ps(a, c, 0x44);
    t[i + 1] = _mm256_shuffle_ps(a, c, 0xee);
    t[i + 2] = _mm256_shuffle_ps(b, d, 0x44);
    t[i + 3] = _mm256_shuffle_ps(b, d, 0xee);
  }
  LLMCLI_UNROLL for (int i = 0; i < 4; ++i) {
    r[i] = _mm256_permute2f128_ps(t[i], t[i + 4], 0x20);
    r[i + 4] = _mm256_permute2f128_ps(t[i], t[i + 4], 0x31);
  }
}
// Eight int32; as bytes, four to a lane.
using I = __m256i;
LLMCLI_INLINE I set_int(int32_t x) { return _mm256_set1_epi32(x); }
LLMCLI_INLINE I load_int(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
LLMCLI_INLINE F convert(I x) { return _mm256_cvtepi32_ps(x); }
LLMCLI_INLINE I low_nibbles(I x) { return _mm256_and_si256(x, _mm256_set1_epi8(15)); }
LLMCLI_INLINE I high_nibbles(I x) { return low_nibbles(_mm256_srli_epi16(x, 4)); }
// sum + the four products of bytes in each lane, u unsigned and below 2^kBits, s signed: exact.
template <int kBits>
LLMCLI_INLINE I dot_bytes(I sum, I u, I s) {
  if constexpr (kBits < 7)  // 2 * 127 * 127 is below 2^15: no saturation
    return _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(u, s), _mm256_set1_epi16(1)));
  const I even = _mm256_madd_epi16(_mm256_and_si256(u, _mm256_set1_epi16(255)),
                                   _mm256_srai_epi16(_mm256_slli_epi16(s, 8), 8));
  const I odd = _mm256_madd_epi16(_mm256_srli_epi16(u, 8), _mm256_srai_epi16(s, 8));
  return _mm256_add_epi32(sum, _mm256_add_epi32(even, odd));
}
// The first n lanes, rounded to nearest even, as int8; |x| < 128.
LLMCLI_INLINE void store_bytes(int8_t* p, F x, int64_t n) {
  const __m256i wide = _mm256_cvtps_epi32(x);
  const __m128i half = _mm_packs_epi32(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1));
  int8_t bytes[16];
  _mm_storeu_si128(reinterpret_cast<__m128i*>(bytes), _mm_packs_epi16(half, half));
  std::memcpy(p, bytes, static_cast<size_t>(n < N ? n : N));
}
LLMCLI_INLINE F round(F x) { return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }

}  // namespace llmcli::cpu::LLMCLI_ISA

#include "vec_math.h"
