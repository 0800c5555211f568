// One bfloat16 or float16 number at a time, rounded to nearest even: for tails and for instruction sets
// without conversions of their own.
#pragma once

namespace llmcli::cpu::LLMCLI_ISA {

LLMCLI_INLINE float from_bits(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}
LLMCLI_INLINE uint32_t to_bits(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}

LLMCLI_INLINE float to_float(float x) { return x; }
LLMCLI_INLINE float to_float(int8_t x) { return x; }
LLMCLI_INLINE float to_float(bf16 x) { return from_bits(static_cast<uint32_t>(x.bits) << 16); }
LLMCLI_INLINE float to_float(f16 x) {
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000u) << 16, magnitude = x.bits & 0x7fffu;
  if (magnitude >= 0x7c00u) return from_bits(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);  // inf, NaN
  // Put exponent and fraction in place and let one exact product fix the bias; it covers subnormals too.
  return from_bits(sign | to_bits(from_bits(magnitude << 13) * from_bits(0x77800000u)));
}

LLMCLI_INLINE void from_float(float x, float* y) { *y = x; }
LLMCLI_INLINE void from_float(float x, bf16* y) {
  const uint32_t bits = to_bits(x);
  const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
  y->bits = static_cast<uint16_t>(nan ? (bits >> 16 | 0x40u) : (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}
LLMCLI_INLINE void from_float(float x, f16* y) {
  const uint32_t bits = to_bits(x), sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
  uint32_t half;
  if (magnitude > 0x7f800000u) {
    half = 0x7e00u;  // NaN
  } else if (magnitude >= 0x477ff000u) {
    half = 0x7c00u;  // rounds to infinity
  } else if (magnitude < 0x38800000u) {
    // Subnormal: adding 0.5 leaves the rounded fraction in the low bits.
    half = to_bits(from_bits(magnitude) + 0.5f) - 0x3f000000u;
  } else {
    half = (magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1u)) >> 13;
  }
  y->bits = static_cast<uint16_t>(sign | half);
}

}  // namespace llmcli::cpu::LLMCLI_ISA
