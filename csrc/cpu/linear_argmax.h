// Which outputs of a wide linear layer can be the highest of their row. The layer y = W x has a copy W' in
// eight bits, packed for linear_quantized, which takes x as x' in eight bits: a = W' x' costs a quarter or
// half of the bytes. By Cauchy and Schwarz |y_n - a_n| <= |w_n - w'_n| |x| + |w'_n| |x - x'|, and sums of K
// products in float32 are off by at most their depth times 2^-24 |w_n| |x|. So y_n lies between a_n - b_n and
// a_n + b_n, with b_n = lost_n * reach[0] + kept_n * reach[1]; rounding to the dtype of y keeps
// the order. A panel whose upper bound is below the highest lower bound of all has no row's highest, and no
// equal of it. Where a bound is not finite, the panel may have anything. Traffic: a copy once, its errors
// once, 8 bytes of each panel.
#pragma once
#include "linear.h"
#include "linear_quantized.h"

namespace llmcli::cpu::LLMCLI_ISA {

constexpr double kRounding = 1.0 / (1 << 24);  // of one float32 operation, relative
// Operations that the sums of `linear` and `linear_quantized` put on top of each other, and a few to spare.
inline double screen_depth(int64_t inputs) {
  const int64_t chain = inputs < kLinearBlock ? inputs : kLinearBlock;
  return static_cast<double>(chain + inputs / kLinearBlock + 16);
}

// Inputs k and k + 1 of N columns of a panel from column c on; `last`: there is no k + 1.
template <typename T>
LLMCLI_INLINE void panel_pair(const T* w, int64_t k, int64_t c, bool last, F* even, F* odd) {
  if constexpr (LinearStep<T>::kDepth == 2) {
    load_pairs(w + k * kLinearPanel + 2 * c, even, odd);
  } else {
    *even = load(w + k * kLinearPanel + c);
    *odd = last ? zero() : load(w + (k + 1) * kLinearPanel + c);
  }
}

template <typename T>
void screen_pack_panel(const ScreenPackArgs& a, int64_t panel) {
  constexpr int64_t kGroup = quantized_group(8), kUnit = quantized_unit(8);
  const int64_t depth = LinearStep<T>::kDepth, steps = (a.inputs + depth - 1) / depth * depth;
  const T* const w = static_cast<const T*>(a.packed) + panel * steps * kLinearPanel;
  uint8_t* to = a.copy + panel * quantized_panel_bytes(a.inputs, 8);
  alignas(64) float lost[kLinearPanel] = {}, kept[kLinearPanel] = {}, scales[kLinearPanel],
                    turns[kLinearPanel];
  for (int64_t g = 0; g < a.inputs; g += kGroup) {
    const int64_t end = g + kGroup < a.inputs ? g + kGroup : a.inputs;
    auto* const scale = reinterpret_cast<bf16*>(to);
    for (int64_t c = 0; c < kLinearPanel; c += N) {
      F top = zero(), even, odd;
      for (int64_t k = g; k < end; k += 2) {
        panel_pair(w, k, c, k + 1 == end, &even, &odd);
        top = max(top, max(abs(even), abs(odd)));
      }
      store(scales + c, mul(top, set(1.0f / 127)));
    }
    for (int64_t c = 0; c < kLinearPanel; ++c) {
      const bool usable = scales[c] > kSmallestRow && scales[c] < 1e30f;  // else all of it is error
      from_float(usable ? scales[c] : 0.0f, scale + c);
      scales[c] = to_float(scale[c]);
      turns[c] = usable ? 1.0f / scales[c] : 0.0f;
    }
    to += 2 * kLinearPanel;
    for (int64_t c = 0; c < kLinearPanel; c += N) {
      const F scale_of = load(scales + c), turn = load(turns + c);
      F without[kUnit], with[kUnit];
      for (int j = 0; j < kUnit; ++j) without[j] = with[j] = zero();
      for (int64_t k = g; k < end; k += kUnit) {
        F x[kUnit] = {zero(), zero(), zero(), zero()};
        panel_pair(w, k, c, k + 1 == end, x, x + 1);
        if (k + 2 < end) panel_pair(w, k + 2, c, k + 3 == end, x + 2, x + 3);
        int8_t q[kUnit][N];
        LLMCLI_UNROLL for (int j = 0; j < kUnit; ++j) {
          const F u = round(min(max(mul(x[j], turn), set(-127.0f)), set(127.0f)));
          const F near = mul(u, scale_of), error = sub(x[j], near);
          without[j] = fma(error, error, without[j]);
          with[j] = fma(near, near, with[j]);
          store_bytes(q[j], u, N);
        }
        uint8_t* const quads = to + (k - g) * kLinearPanel + kUnit * c;
        for (int i = 0; i < N; ++i)
          for (int j = 0; j < kUnit; ++j) quads[kUnit * i + j] = static_cast<uint8_t>(q[j][i] ^ 0x80);
      }
      const auto total = [](const F(&f)[kUnit])
                             LLMCLI_INLINE_BODY { return add(add(f[0], f[1]), add(f[2], f[3])); };
      store(lost + c, add(load(lost + c), total(without)));
      store(kept + c, add(load(kept + c), total(with)));
    }
    to += (end - g + kUnit - 1) / kUnit * kUnit * kLinearPanel;
  }
  const double above = 1.0 + (static_cast<double>(a.inputs) + 16) * kRounding;
  for (int64_t c = 0; c < kLinearPanel; ++c) {
    const int64_t n = panel * kLinearPanel + c;
    a.errors[n] = static_cast<float>(::sqrt(static_cast<double>(lost[c])) * above);
    a.errors[a.panels * kLinearPanel + n] = static_cast<float>(::sqrt(static_cast<double>(kept[c])) * above);
  }
}

void screen_pack(const ScreenPackArgs& a, int64_t begin, int64_t end) {
  for (int64_t panel = begin; panel < end; ++panel) switch (a.dtype) {
      case DType::f32:
        screen_pack_panel<float>(a, panel);
        break;
      case DType::bf16:
        screen_pack_panel<bf16>(a, panel);
        break;
      case DType::f16:
        screen_pack_panel<f16>(a, panel);
        break;
    }
}

template <typename T>
void screen_row(const QuantizedLinearArgs& a, int64_t row, float* reach) {
  const int64_t groups = quantized_groups(a.inputs, 8), padded = quantized_inputs(a.inputs, 8);
  const T* const x = static_cast<const T*>(a.x) + row * a.inputs;
  double size = 0, lost = 0;
  for (int64_t k = 0; k < a.inputs; ++k) {
    const double v = to_float(x[k]);
    const double near = static_cast<double>(a.q[row * padded + k]) *
                        static_cast<double>(a.scales[row * groups + k / quantized_group(8)]);
    size += v * v;
    lost += (v - near) * (v - near);
  }
  size = ::sqrt(size), lost = ::sqrt(lost);
  const double rounding = screen_depth(a.inputs) * kRounding, above = 1.0001;
  reach[0] = static_cast<float>(above * size * (1 + rounding));
  reach[1] = static_cast<float>(above * (lost + rounding * (2 * size + lost)));
}

// reach of rows that linear_quantized_rows has brought to eight bits.
void screen_rows(const QuantizedLinearArgs& a, float* reach, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) switch (a.dtype) {
      case DType::f32:
        screen_row<float>(a, row, reach + 2 * row);
        break;
      case DType::bf16:
        screen_row<bf16>(a, row, reach + 2 * row);
        break;
      case DType::f16:
        screen_row<f16>(a, row, reach + 2 * row);
        break;
    }
}

template <typename T>
LLMCLI_INLINE float rounded(float x) {
  T y;
  from_float(x, &y);
  return to_float(y);
}
inline float rounded_to(DType dtype, float x) {
  return dtype == DType::f32 ? x : dtype == DType::bf16 ? rounded<bf16>(x) : rounded<f16>(x);
}

void screen_panel(const ScreenArgs& a, int64_t begin, int64_t end) {
  const float *const lost = a.lost + a.panel * kLinearPanel, *const kept = a.kept + a.panel * kLinearPanel;
  for (int64_t row = begin; row < end; ++row) {
    const float* const x = a.logits + (row - a.first_row) * a.columns;
    const F r0 = set(a.reach[2 * row]), r1 = set(a.reach[2 * row + 1]);
    F high = set(-INFINITY), low = high, faults = zero();
    for (int64_t c = 0; c < a.columns; c += N) {
      const F bound = fma(load(lost + c), r0, mul(load(kept + c), r1));
      const F y = load_up_to(x + c, a.columns - c, -INFINITY);
      high = max(high, add(y, bound));
      low = max(low, sub(y, bound));
      faults = add(faults, mul(add(load_up_to(x + c, a.columns - c), bound), zero()));
    }
    const bool finite = reduce_add(faults) == 0.0f;
    a.upper[row * a.panels + a.panel] = finite ? rounded_to(a.dtype, reduce_max(high)) : INFINITY;
    a.lower[row * a.panels + a.panel] = finite ? rounded_to(a.dtype, reduce_max(low)) : -INFINITY;
  }
}

void screen_choose(const ScreenArgs& a, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const float *const lower = a.lower + row * a.panels, *const upper = a.upper + row * a.panels;
    float floor = -INFINITY;
    for (int64_t p = 0; p < a.panels; ++p) floor = lower[p] > floor ? lower[p] : floor;
    for (int64_t p = 0; p < a.panels; ++p) a.wanted[p] |= upper[p] >= floor;
  }
}

}  // namespace llmcli::cpu::LLMCLI_ISA
