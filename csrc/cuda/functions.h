// Elementary functions of single numbers, as in cpu/vec_math.h and cpu/activation.h.
#pragma once
#include "warp.h"

namespace llmcli::cuda {

__device__ inline float exp_fast(float x) { return exp2_fast(x * kLog2E); }

// Near 0 an odd polynomial (Cephes, tanhf), then from e^-2|x|, which cannot overflow.
__device__ inline float tanh_fast(float x) {
  const float size = fabsf(x), s = x * x;
  float p = fmaf(-5.70498873e-3f, s, 2.06390888e-2f);
  p = fmaf(p, s, -5.37397156e-2f);
  p = fmaf(p, s, 1.33314422e-1f);
  p = fmaf(p, s, -3.33332819e-1f);
  p = fmaf(p * s, x, x);
  const float e = exp_fast(-2.0f * size), t = (1.0f - e) / (1.0f + e);
  return size < 0.625f ? p : x < 0.0f ? -t : t;
}

// The derivative of tanh at x, without the cancellation of 1 - tanh^2.
__device__ inline float tanh_slope(float x) {
  const float e = exp_fast(-2.0f * fabsf(x)), below = 1.0f + e;
  return 4.0f * e / (below * below);
}

// p = 1 / (1 + e^-x) and q = 1 - p, each to full precision: both from e^-|x|, which cannot overflow.
struct Logistic {
  float p, q;
};
__device__ inline Logistic logistic(float x) {
  const float e = exp_fast(-fabsf(x)), large = reciprocal_fast(1.0f + e), small = e * large;
  return x > 0.0f ? Logistic{large, small} : Logistic{small, large};
}

// P(Z <= z) for a normal Z: the tail behind t = |z| / sqrt(2), near 0 from a polynomial for erf, from 0.93 on
// from one for the logarithm of erfc.
__device__ inline float normal_cdf(float z) {
  const float t = fabsf(z * 0.707106781f), s = t * t;
  float q = fmaf(-5.96761703e-4f, s, 4.99119423e-3f);
  q = fmaf(q, s, -2.67681349e-2f);
  q = fmaf(q, s, 1.12819925e-1f);
  q = fmaf(q, s, -3.76125336e-1f);
  q = fmaf(q, s, 1.28379166e-1f);
  q = fmaf(q, t, t);
  float r = fmaf(-1.72853470e-5f, t, 3.83197126e-4f);
  r = fmaf(r, s, fmaf(-3.88396438e-3f, t, 2.42546219e-2f));
  r = fmaf(r, t, -1.06777877e-1f);
  r = fmaf(r, t, -6.34846687e-1f);
  r = fmaf(r, t, -1.28717512e-1f);
  r = fmaf(r, t, -t);
  const float tail = 0.5f * (t < 0.92773438f ? 1.0f - q : exp_fast(r));
  return z > 0.0f ? 1.0f - tail : tail;
}

// The tanh form of GELU: (1 + tanh(u)) / 2 is the logistic function of 2 u, here 2 u of z.
__device__ inline float gelu_inner(float z) { return z * fmaf(z * z, 0.0713548163f, 1.59576912f); }

template <bool kTanh>
__device__ float gelu_value(float z) {
  return z * (kTanh ? logistic(gelu_inner(z)).p : normal_cdf(z));
}
template <bool kTanh>
__device__ float gelu_slope(float z) {
  if constexpr (kTanh) {
    const Logistic s = logistic(gelu_inner(z));
    const float inner_slope = fmaf(z * z, 0.214064449f, 1.59576912f);
    return fmaf(z * inner_slope, s.p * s.q, s.p);
  } else {
    return fmaf(z, 0.398942280f * exp_fast(z * z * -0.5f), normal_cdf(z));
  }
}

}  // namespace llmcli::cuda
