// Elementary functions, width-agnostic, on top of a vec_*.h.
#pragma once

namespace llmcli::cpu::LLMCLI_ISA {

// e^x within 2 ULP. Results below the smallest normal number are 0, NaN stays NaN.
// Cody-Waite reduction, then the Taylor polynomial on |r| <= ln(2)/2 in Estrin-free Horner form.
LLMCLI_INLINE F exp(F x) {
  const F low = set(-87.33654f), high = set(88.72283f);
  const F n = round(mul(max(low, min(high, x)), set(1.44269504f)));
  F r = fma(n, set(-0.693145752f), x);
  r = fma(n, set(-1.42860677e-6f), r);
  F p = set(1.0f / 5040);
  p = fma(p, r, set(1.0f / 720));
  p = fma(p, r, set(1.0f / 120));
  p = fma(p, r, set(1.0f / 24));
  p = fma(p, r, set(1.0f / 6));
  p = fma(p, r, set(0.5f));
  p = fma(p, r, set(1.0f));
  p = fma(p, r, set(1.0f));
  // 2^n in two factors: n reaches 128 at the upper end.
  const F half = round(mul(n, set(0.5f)));
  p = mul(mul(p, exp2i(half)), exp2i(sub(n, half)));
  p = select(less(x, low), zero(), p);
  return select(less(high, x), set(INFINITY), p);
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
