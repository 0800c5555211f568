// Sixteen floats: AVX-512 F, BW, DQ, VL; LLMCLI_HAS_BF16 where the target also has the bfloat16 instructions.
#pragma once
#include "half.h"

namespace llmcli::cpu::LLMCLI_ISA {

constexpr int N = 16;
using F = __m512;
using M = __mmask16;

LLMCLI_INLINE F set(float x) { return _mm512_set1_ps(x); }
LLMCLI_INLINE F zero() { return _mm512_setzero_ps(); }

LLMCLI_INLINE M lanes_below(int64_t n) {
  return n >= N ? 0xffff : static_cast<M>((1u << (n > 0 ? n : 0)) - 1u);
}
LLMCLI_INLINE F widen(__m256i x, const bf16*) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16));
}
LLMCLI_INLINE F widen(__m256i x, const f16*) { return _mm512_cvtph_ps(x); }
LLMCLI_INLINE __m256i narrow(F x, const bf16*) {
#if defined(LLMCLI_HAS_BF16)
  return (__m256i)_mm512_cvtneps_pbh(x);
#else
  const __m512i bits = _mm512_castps_si512(x);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded =
      _mm512_srli_epi32(_mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))), 16);
  const __m512i quiet = _mm512_or_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(0x40));
  const M nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
  return _mm512_cvtepi32_epi16(_mm512_mask_mov_epi32(rounded, nan, quiet));
#endif
}
LLMCLI_INLINE __m256i narrow(F x, const f16*) {
  return _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

LLMCLI_INLINE F load(const float* p) { return _mm512_loadu_ps(p); }
LLMCLI_INLINE F load(const int8_t* p) {
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}
template <typename T>
LLMCLI_INLINE F load(const T* p) {
  return widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)), p);
}
// The first n lanes from memory, the rest `fill`; nothing past p[n - 1] is touched.
LLMCLI_INLINE F load_n(const float* p, int64_t n, float fill = 0.0f) {
  return _mm512_mask_loadu_ps(set(fill), lanes_below(n), p);
}
template <typename T>
LLMCLI_INLINE F load_n(const T* p, int64_t n, float fill = 0.0f) {
  const M m = lanes_below(n);
  return _mm512_mask_mov_ps(set(fill), m, widen(_mm256_maskz_loadu_epi16(m, p), p));
}
// Lane i of even and odd: elements 2 i and 2 i + 1.
LLMCLI_INLINE void load_pairs(const bf16* p, F* even, F* odd) {
  const __m512i x = _mm512_loadu_si512(p);
  *even = _mm512_castsi512_ps(_mm512_slli_epi32(x, 16));
  *odd = _mm512_castsi512_ps(_mm512_and_si512(x, _mm512_set1_epi32(static_cast<int>(0xffff0000u))));
}
LLMCLI_INLINE void store(float* p, F x) { _mm512_storeu_ps(p, x); }
template <typename T>
LLMCLI_INLINE void store(T* p, F x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow(x, p));
}
LLMCLI_INLINE void store_n(float* p, F x, int64_t n) { _mm512_mask_storeu_ps(p, lanes_below(n), x); }
template <typename T>
LLMCLI_INLINE void store_n(T* p, F x, int64_t n) {
  _mm256_mask_storeu_epi16(p, lanes_below(n), narrow(x, p));
}

// True where a byte is not zero; lanes past the end are false.
LLMCLI_INLINE M load_bool(const unsigned char* p) {
  const __m128i x = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm_test_epi8_mask(x, x);
}
LLMCLI_INLINE M load_bool_n(const unsigned char* p, int64_t n) {
  const __m128i x = _mm_maskz_loadu_epi8(lanes_below(n), p);
  return _mm_test_epi8_mask(x, x);
}

LLMCLI_INLINE F add(F a, F b) { return _mm512_add_ps(a, b); }
LLMCLI_INLINE F sub(F a, F b) { return _mm512_sub_ps(a, b); }
LLMCLI_INLINE F mul(F a, F b) { return _mm512_mul_ps(a, b); }
LLMCLI_INLINE F div(F a, F b) { return _mm512_div_ps(a, b); }
LLMCLI_INLINE F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
LLMCLI_INLINE M less(F a, F b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }
LLMCLI_INLINE F select(M m, F a, F b) { return _mm512_mask_mov_ps(b, m, a); }  // m ? a : b
LLMCLI_INLINE F max(F a, F b) { return _mm512_max_ps(a, b); }                  // b where either is NaN
LLMCLI_INLINE F min(F a, F b) { return _mm512_min_ps(a, b); }
LLMCLI_INLINE F sqrt(F x) { return _mm512_sqrt_ps(x); }
LLMCLI_INLINE float reduce_add(F x) { return _mm512_reduce_add_ps(x); }
LLMCLI_INLINE float reduce_max(F x) { return _mm512_reduce_max_ps(x); }
// 2^k from the k + 127 that stands in the lowest bits of t.
LLMCLI_INLINE F power_of_bits(F t) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(t), 23));
}
LLMCLI_INLINE F ldexp(F x, F n) { return _mm512_scalef_ps(x, n); }  // x * 2^n for integral n
// r[i][j] becomes r[j][i].
LLMCLI_INLINE void transpose(F (&r)[N]) {
  F t[N];
  LLMCLI_UNROLL for (int i = 0; i < N; i += 4) {  // 4 x 4 blocks of floats inside each 128-bit lane
    const F a = _mm512_unpacklo_ps(r[i], r[i + 1]), b = _mm512_unpackhi_ps(r[i], r[i + 1]);
    const F c = _mm512_unpacklo_ps(r[i + 2], r[i + 3]), d = _mm512_unpackhi_ps(r[i + 2], r[i + 3]);
    t[i] = _mm512_shuffle_ps(a, c, 0x44);
    t[i + 1] = _mm512_shuffle_ps(a, c, 0xee);
    t[i + 2] = _mm512_shuffle_ps(b, d, 0x44);
    t[i + 3] = _mm512_shuffle_ps(b, d, 0xee);
  }
  LLMCLI_UNROLL for (int i = 0; i < 4; ++i) {  // then the 4 x 4 arrangement of those lanes
    const F a = _mm512_shuffle_f32x4(t[i], t[i + 4], 0x88), b = _mm512_shuffle_f32x4(t[i], t[i + 4], 0xdd);
    const F c = _mm512_shuffle_f32x4(t[i + 8], t[i + 12], 0x88);
    const F d = _mm512_shuffle_f32x4(t[i + 8], t[i + 12], 0xdd);
    r[i] = _mm512_shuffle_f32x4(a, c, 0x88);
    r[i + 4] = _mm512_shuffle_f32x4(b, d, 0x88);
    r[i + 8] = _mm512_shuffle_f32x4(a, c, 0xdd);
    r[i + 12] = _mm512_shuffle_f32x4(b, d, 0xdd);
  }
}
// Sixteen int32; as bytes, four to a lane.
using I = __m512i;
LLMCLI_INLINE I set_int(int32_t x) { return _mm512_set1_epi32(x); }
LLMCLI_INLINE I load_int(const void* p) { return _mm512_loadu_si512(p); }
LLMCLI_INLINE F convert(I x) { return _mm512_cvtepi32_ps(x); }
LLMCLI_INLINE I low_nibbles(I x) { return _mm512_and_si512(x, _mm512_set1_epi8(15)); }
LLMCLI_INLINE I high_nibbles(I x) { return low_nibbles(_mm512_srli_epi16(x, 4)); }
// sum + the four products of bytes in each lane, u unsigned and below 2^kBits, s signed: exact.
template <int kBits>
LLMCLI_INLINE I dot_bytes(I sum, I u, I s) {
#if defined(LLMCLI_HAS_VNNI)
  // As assembly: of the intrinsic, GCC 12 keeps two copies of every sum, and spills them.
  asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(u), "v"(s));
  return sum;
#else
  if constexpr (kBits < 7)  // 2 * 127 * 127 is below 2^15: no saturation
    return _mm512_add_epi32(sum, _mm512_madd_epi16(_mm512_maddubs_epi16(u, s), _mm512_set1_epi16(1)));
  const I even = _mm512_madd_epi16(_mm512_and_si512(u, _mm512_set1_epi16(255)),
                                   _mm512_srai_epi16(_mm512_slli_epi16(s, 8), 8));
  const I odd = _mm512_madd_epi16(_mm512_srli_epi16(u, 8), _mm512_srai_epi16(s, 8));
  return _mm512_add_epi32(sum, _mm512_add_epi32(even, odd));
#endif
}
// The first n lanes, rounded to nearest even, as int8; |x| < 128.
LLMCLI_INLINE void store_bytes(int8_t* p, F x, int64_t n) {
  _mm_mask_storeu_epi8(p, lanes_below(n), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(x)));
}
LLMCLI_INLINE F round(F x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }

}  // namespace llmcli::cpu::LLMCLI_ISA

#include "vec_math.h"
