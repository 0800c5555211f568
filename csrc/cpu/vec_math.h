// Elementary functions, width-agnostic, on top of a vec_*.h. NaN stays NaN.
#pragma once

namespace llmcli::cpu::LLMCLI_ISA {

// e^x for x <= 0, within 2 ULP in degree 6, relative error 2^-18 in degree 4. Below -87 it is 0; +inf gives
// NaN. e^x = 2^n e^r with |r| <= ln(2)/2: adding 1.5 * 2^23 rounds x / ln(2) to the integer n and leaves n,
// biased, in the lowest bits, where 2^n is made from.
template <int kDegree = 6>
LLMCLI_INLINE F exp_nonpositive(F x) {
  const F magic = set(12582912.0f + 127.0f);
  const F t = fma(x, set(1.44269504f), magic);
  const F n = sub(t, magic);
  F r, p;
  // Minimax in the relative error: 3e-9 in degree 6, 3e-6 in degree 4.
  if constexpr (kDegree == 6) {
    r = fma(n, set(-1.42860677e-6f), fma(n, set(-0.693145752f), x));  // ln(2) in two parts (Cody and Waite)
    p = fma(set(0.00138145395f), r, set(0.00836874545f));
    p = fma(p, r, set(0.0416683890f));
    p = fma(p, r, set(0.166665211f));
    p = fma(p, r, set(0.499999940f));
    p = fma(p, r, set(1.0f));
  } else {
    r = fma(n, set(-0.693147182f), x);
    p = fma(set(0.0415136814f), r, set(0.167875916f));
    p = fma(p, r, set(0.500030220f));
    p = fma(p, r, set(0.999966800f));
  }
  p = mul(fma(p, r, set(1.0f)), power_of_bits(t));
  return select(less(x, set(-87.0f)), zero(), p);
}
// The degree that rounding to T leaves visible.
template <typename T>
constexpr int kExpDegree = sizeof(T) == sizeof(float) ? 6 : 4;

LLMCLI_INLINE F abs(F x) { return max(x, sub(zero(), x)); }

// Within 2 ULP: near 0 an odd polynomial (Cephes, tanhf), then from e^-2|x|, which cannot overflow.
LLMCLI_INLINE F tanh(F x) {
  const F size = abs(x), s = mul(x, x), one = set(1.0f);
  F p = fma(set(-5.70498873e-3f), s, set(2.06390888e-2f));
  p = fma(p, s, set(-5.37397156e-2f));
  p = fma(p, s, set(1.33314422e-1f));
  p = fma(p, s, set(-3.33332819e-1f));
  p = fma(mul(p, s), x, x);
  const F e = exp_nonpositive(mul(set(-2.0f), size));
  const F t = div(sub(one, e), add(one, e));
  return select(less(size, set(0.625f)), p, select(less(x, zero()), sub(zero(), t), t));
}

// The derivative of tanh where it is t.
LLMCLI_INLINE F tanh_slope(F t) { return mul(sub(set(1.0f), t), add(set(1.0f), t)); }

// erfc(t) / 2 for t >= 0: the tail of the normal distribution. Absolute error 3e-8, relative 1e-4 to t = 4.
template <int kDegree = 6>
LLMCLI_INLINE F half_erfc(F t) {
  const F s = mul(t, t);
  // Near 0: 1/2 - erf(t) / 2 with erf(t) = t + t * polynomial in t^2.
  F q = fma(set(-5.96761703e-4f), s, set(4.99119423e-3f));
  q = fma(q, s, set(-2.67681349e-2f));
  q = fma(q, s, set(1.12819925e-1f));
  q = fma(q, s, set(-3.76125336e-1f));
  q = fma(q, s, set(1.28379166e-1f));
  q = fma(q, t, t);
  // From 0.93 on: the logarithm of erfc(t) as a polynomial.
  F r = fma(set(-1.72853470e-5f), t, set(3.83197126e-4f));
  r = fma(r, s, fma(set(-3.88396438e-3f), t, set(2.42546219e-2f)));
  r = fma(r, t, set(-1.06777877e-1f));
  r = fma(r, t, set(-6.34846687e-1f));
  r = fma(r, t, set(-1.28717512e-1f));
  r = fma(r, t, sub(zero(), t));
  return mul(set(0.5f), select(less(t, set(0.92773438f)), sub(set(1.0f), q), exp_nonpositive<kDegree>(r)));
}

// 2^x for x <= 127, within 2 ULP. Results below the smallest normal number are 0, NaN stays NaN.
// Minimax polynomial of 2^f, |f| <= 1/2, relative error 2e-9 before rounding.
LLMCLI_INLINE F exp2(F x) {
  const F low = set(-126.0f);
  const F y = max(low, x);
  const F n = round(y);
  const F f = sub(y, n);
  F p = set(1.535336201e-4f);
  p = fma(p, f, set(1.339887445e-3f));
  p = fma(p, f, set(9.618437358e-3f));
  p = fma(p, f, set(5.550332471e-2f));
  p = fma(p, f, set(2.402264791e-1f));
  p = fma(p, f, set(6.931472029e-1f));
  p = fma(p, f, set(1.0f));
  return select(less(x, low), zero(), ldexp(p, n));
}

}  // namespace llmcli::cpu::LLMCLI_ISA
