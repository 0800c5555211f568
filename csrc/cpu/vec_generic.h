// Four floats through the compiler's own vector types: the baseline of every architecture, and NEON.
#pragma once
#include "half.h"

namespace llmcli::cpu::LLMCLI_ISA {

constexpr int N = 4;
typedef float F __attribute__((vector_size(16)));
typedef int32_t I __attribute__((vector_size(16)));
using M = I;  // all ones where true

LLMCLI_INLINE F set(float x) { return F{x, x, x, x}; }
LLMCLI_INLINE F zero() { return set(0.0f); }

template <typename T>
LLMCLI_INLINE F load(const T* p) {
  return F{to_float(p[0]), to_float(p[1]), to_float(p[2]), to_float(p[3])};
}
template <>
LLMCLI_INLINE F load<float>(const float* p) {
  F x;
  std::memcpy(&x, p, sizeof x);
  return x;
}
// The first n lanes from memory, the rest `fill`; nothing past p[n - 1] is touched.
template <typename T>
LLMCLI_INLINE F load_n(const T* p, int64_t n, float fill = 0.0f) {
  F x = set(fill);
  for (int i = 0; i < N; ++i)
    if (i < n) x[i] = to_float(p[i]);
  return x;
}
// Lane i of even and odd: elements 2 i and 2 i + 1.
LLMCLI_INLINE void load_pairs(const bf16* p, F* even, F* odd) {
  I x;
  std::memcpy(&x, p, sizeof x);
  *even = (F)(x << 16);
  *odd = (F)(x & static_cast<int32_t>(0xffff0000u));
}
template <typename T>
LLMCLI_INLINE void store(T* p, F x) {
  for (int i = 0; i < N; ++i) from_float(x[i], p + i);
}
template <>
LLMCLI_INLINE void store<float>(float* p, F x) {
  std::memcpy(p, &x, sizeof x);
}
template <typename T>
LLMCLI_INLINE void store_n(T* p, F x, int64_t n) {
  for (int i = 0; i < N; ++i)
    if (i < n) from_float(x[i], p + i);
}

// True where a byte is not zero; lanes past the end are false.
LLMCLI_INLINE M load_bool_n(const unsigned char* p, int64_t n) {
  M m = {};
  for (int i = 0; i < N; ++i)
    if (i < n) m[i] = p[i] ? -1 : 0;
  return m;
}
LLMCLI_INLINE M load_bool(const unsigned char* p) { return load_bool_n(p, N); }

LLMCLI_INLINE F add(F a, F b) { return a + b; }
LLMCLI_INLINE F sub(F a, F b) { return a - b; }
LLMCLI_INLINE F mul(F a, F b) { return a * b; }
LLMCLI_INLINE F div(F a, F b) { return a / b; }
LLMCLI_INLINE F fma(F a, F b, F c) {  // rounded once where the architecture can
#if defined(__aarch64__)
  return (F)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
  return a * b + c;
#endif
}
LLMCLI_INLINE M less(F a, F b) { return a < b; }
LLMCLI_INLINE F select(M m, F a, F b) { return (F)((m & (I)a) | (~m & (I)b)); }  // m ? a : b
LLMCLI_INLINE F max(F a, F b) { return select(a > b, a, b); }                    // b where either is NaN
LLMCLI_INLINE F min(F a, F b) { return select(a < b, a, b); }
LLMCLI_INLINE F sqrt(F x) { return F{sqrtf(x[0]), sqrtf(x[1]), sqrtf(x[2]), sqrtf(x[3])}; }
LLMCLI_INLINE float reduce_add(F x) { return (x[0] + x[2]) + (x[1] + x[3]); }
LLMCLI_INLINE float reduce_max(F x) {
  const float a = x[0] > x[2] ? x[0] : x[2], b = x[1] > x[3] ? x[1] : x[3];
  return a > b ? a : b;
}
// 2^k from the k + 127 that stands in the lowest bits of t.
LLMCLI_INLINE F power_of_bits(F t) { return (F)((I)t << 23); }
// x * 2^n for integral n, where neither x nor the result is subnormal.
LLMCLI_INLINE F ldexp(F x, F n) {
  const I k = {static_cast<int32_t>(n[0]), static_cast<int32_t>(n[1]), static_cast<int32_t>(n[2]),
               static_cast<int32_t>(n[3])};
  return (F)((I)x + (k << 23));
}
// r[i][j] becomes r[j][i].
LLMCLI_INLINE void transpose(F (&r)[N]) {
  const F a = {r[0][0], r[1][0], r[2][0], r[3][0]}, b = {r[0][1], r[1][1], r[2][1], r[3][1]};
  const F c = {r[0][2], r[1][2], r[2][2], r[3][2]}, d = {r[0][3], r[1][3], r[2][3], r[3][3]};
  r[0] = a, r[1] = b, r[2] = c, r[3] = d;
}
LLMCLI_INLINE F round(F x) {  // to nearest even, |x| < 2^22
  const F magic = set(12582912.0f);
  return (x + magic) - magic;
}

// Four int32; as bytes, four to a lane.
LLMCLI_INLINE I set_int(int32_t x) { return I{x, x, x, x}; }
LLMCLI_INLINE I load_int(const void* p) {
  I x;
  std::memcpy(&x, p, sizeof x);
  return x;
}
LLMCLI_INLINE F convert(I x) { return __builtin_convertvector(x, F); }
LLMCLI_INLINE I low_nibbles(I x) { return x & 0x0f0f0f0f; }
LLMCLI_INLINE I high_nibbles(I x) { return (x >> 4) & 0x0f0f0f0f; }
// sum + the four products of bytes in each lane, u unsigned and below 2^kBits, s signed: exact.
template <int kBits>
LLMCLI_INLINE I dot_bytes(I sum, I u, I s) {
#if defined(__x86_64__)
  const __m128i a = (__m128i)u, b = (__m128i)s;
  const __m128i even =
      _mm_madd_epi16(_mm_and_si128(a, _mm_set1_epi16(255)), _mm_srai_epi16(_mm_slli_epi16(b, 8), 8));
  const __m128i odd = _mm_madd_epi16(_mm_srli_epi16(a, 8), _mm_srai_epi16(b, 8));
  return sum + (I)_mm_add_epi32(even, odd);
#else
  for (int j = 0; j < 32; j += 8) sum += ((u >> j) & 255) * ((s << (24 - j)) >> 24);
  return sum;
#endif
}
// The first n lanes, rounded to nearest even, as int8; |x| < 128.
LLMCLI_INLINE void store_bytes(int8_t* p, F x, int64_t n) {
  const F rounded = round(x);
  for (int i = 0; i < N; ++i)
    if (i < n) p[i] = static_cast<int8_t>(rounded[i]);
}

}  // namespace llmcli::cpu::LLMCLI_ISA

#include "vec_math.h"
