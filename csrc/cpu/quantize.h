// A matrix brought to 8 or 4 bits: groups of consecutive inputs share a scale, and a weight is close to scale
// * q, q from -2^(bits-1) to 2^(bits-1) - 1. The element furthest from zero takes the integer furthest from
// zero. Of 4 bits, scale and integers are then fitted to each other in turn (Lloyd 1982), with sums in
// double, which are exact but for groups of wildly different sizes: the same bits on every instruction set.
#pragma once

namespace llmcli::cpu::LLMCLI_ISA {

constexpr int kScaleRefits = 2;  // of 4 bits; of 8, a better scale gains less than a hundredth of the error

// q = x / scale to the nearest whole number within the limits, for n elements, n a multiple of vectors.
LLMCLI_INLINE void quantize_on(const float* x, float* q, int64_t n, float scale, float limit) {
  for (int64_t i = 0; i < n; i += N)
    store(q + i, min(max(round(div(load(x + i), set(scale))), set(-limit)), set(limit - 1)));
}

// sum(x * q) / sum(q * q), the scale of least squared error.
LLMCLI_INLINE float best_scale(const float* x, const float* q, int64_t n) {
  constexpr int kChains = 8;
  double above[kChains] = {}, below[kChains] = {};
  for (int64_t i = 0; i < n; i += kChains)
    for (int j = 0; j < kChains; ++j) {
      above[j] += static_cast<double>(x[i + j]) * static_cast<double>(q[i + j]);
      below[j] += static_cast<double>(q[i + j]) * static_cast<double>(q[i + j]);
    }
  for (int j = 1; j < kChains; ++j) above[0] += above[j], below[0] += below[j];
  return static_cast<float>(above[0] / below[0]);
}

// One group of n weights; returns its scale, which is 0, infinite or NaN where the group has none.
template <typename T>
LLMCLI_INLINE bf16 quantize_group(const T* w, int64_t n, int bits, float* x, float* q) {
  const int64_t group = quantized_group(bits);
  const float limit = bits == 8 ? 128.0f : 8.0f;
  F low = zero(), high = zero(), faults = zero();
  for (int64_t i = 0; i < group; i += N) {
    const F v = i < n ? load_n(w + i, n - i) : zero();
    store(x + i, v);
    low = min(low, v);
    high = max(high, v);
    faults = add(faults, mul(v, zero()));
  }
  const float top = reduce_max(high), bottom = -reduce_max(sub(zero(), low));
  bf16 scale;
  from_float((-bottom > top ? bottom : top) / -limit, &scale);
  if (reduce_add(faults) != 0.0f) from_float(from_bits(0x7fc00000u), &scale);
  const float s = to_float(scale);
  if (!(s * 0.0f == 0.0f) || s == 0.0f) {
    for (int64_t i = 0; i < group; i += N) store(q + i, zero());
    return scale;
  }
  quantize_on(x, q, group, s, limit);
  if (bits == 4)
    for (int i = 0; i < kScaleRefits; ++i) {
      from_float(best_scale(x, q, group), &scale);
      quantize_on(x, q, group, to_float(scale), limit);
    }
  return scale;
}

template <typename T>
void quantize_rows(const QuantizeArgs& a, int64_t begin, int64_t end) {
  alignas(64) float x[quantized_group(8)], q[quantized_group(8)];
  const int64_t group = quantized_group(a.bits), groups = quantized_groups(a.inputs, a.bits);
  for (int64_t row = begin; row < end; ++row)
    for (int64_t g = 0; g < groups; ++g) {
      const int64_t k = g * group, n = a.inputs - k < group ? a.inputs - k : group;
      a.scale[row * groups + g] =
          quantize_group(static_cast<const T*>(a.w) + row * a.w_stride + k, n, a.bits, x, q);
      if (a.bits == 8) {
        for (int64_t i = 0; i < n; i += N)
          store_bytes(static_cast<int8_t*>(a.q) + row * a.inputs + k + i, load(q + i), n - i);
      } else {
        uint8_t* to = static_cast<uint8_t*>(a.q) + row * ((a.inputs + 1) / 2) + k / 2;
        for (int64_t i = 0; i < n; i += 2)
          to[i / 2] =
              static_cast<uint8_t>(static_cast<int>(q[i]) + 8 + (static_cast<int>(q[i + 1]) + 8) * 16);
      }
    }
}

void quantize(const QuantizeArgs& a, int64_t begin, int64_t end) {
  switch (a.dtype) {
    case DType::f32:
      return quantize_rows<float>(a, begin, end);
    case DType::bf16:
      return quantize_rows<bf16>(a, begin, end);
    case DType::f16:
      return quantize_rows<f16>(a, begin, end);
  }
}

}  // namespace llmcli::cpu::LLMCLI_ISA
