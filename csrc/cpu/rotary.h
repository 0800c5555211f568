// Rotary position embedding: pairs (x[i], x[i + half]) of a head turn by an angle per position and pair (Su
// et al. 2021, RoFormer, section 3.2.2; halves paired as in GPT-NeoX and Llama). Elements from 2 half on
// stay. Traffic: x once, y once; the angles of a row serve all its heads.
#pragma once
#include "vec_loop.h"

namespace llmcli::cpu::LLMCLI_ISA {

template <typename T>
void rotary_rows(const RotaryArgs& a, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const int64_t b = row / a.T, t = row % a.T;
    const float *c = a.cos + b * a.angle_b + t * a.angle_t, *s = a.sin + b * a.angle_b + t * a.angle_t;
    for (int64_t h = 0; h < a.H; ++h) {
      const T* x = static_cast<const T*>(a.x) + b * a.x_b + t * a.x_t + h * a.x_h;
      T* y = static_cast<T*>(a.y) + (row * a.H + h) * a.D;
      each_vector(a.half, [&](int64_t i, int64_t n) LLMCLI_INLINE_BODY {
        const F u = load_up_to(x + i, n), v = load_up_to(x + a.half + i, n);
        const F cosine = load_up_to(c + i, n), sine = load_up_to(s + i, n);
        store_up_to(y + i, sub(mul(u, cosine), mul(v, sine)), n);
        store_up_to(y + a.half + i, add(mul(v, cosine), mul(u, sine)), n);
      });
      std::memcpy(y + 2 * a.half, x + 2 * a.half, static_cast<size_t>(a.D - 2 * a.half) * sizeof(T));
    }
  }
}

void rotary(const RotaryArgs& a, int64_t begin, int64_t end) {
  switch (a.dtype) {
    case DType::f32:
      return rotary_rows<float>(a, begin, end);
    case DType::bf16:
      return rotary_rows<bf16>(a, begin, end);
    case DType::f16:
      return rotary_rows<f16>(a, begin, end);
  }
}

}  // namespace llmcli::cpu::LLMCLI_ISA
