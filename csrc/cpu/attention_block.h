// One tile of query rows against one block of keys: scores, weights, and the product with V.
#pragma once

namespace llmcli::cpu::LLMCLI_ISA {

// n elements of a bias row, from key `key` on, times log2(e).
template <typename T>
LLMCLI_INLINE void attention_bias_row(const AttentionArgs& a, const T* bias, float* to, int64_t n) {
  const F unit = set(kLog2e);
  if (a.bias_s == 1) {
    for (int64_t i = 0; i < n; i += N)
      store(to + i, mul(n - i >= N ? load(bias + i) : load_n(bias + i, n - i), unit));
  } else {
    for (int64_t i = 0; i < n; ++i) to[i] = to_float(bias[i * a.bias_s]) * kLog2e;
  }
}

LLMCLI_INLINE void attention_bias(const AttentionArgs& a, float* to, int64_t b, int64_t h, int64_t t,
                                  int64_t key, int64_t n) {
  const int64_t offset = b * a.bias_b + h * a.bias_h + t * a.bias_t + key * a.bias_s;
  switch (a.bias_dtype) {
    case DType::f32:
      return attention_bias_row(a, static_cast<const float*>(a.bias) + offset, to, n);
    case DType::bf16:
      return attention_bias_row(a, static_cast<const bf16*>(a.bias) + offset, to, n);
    case DType::f16:
      return attention_bias_row(a, static_cast<const f16*>(a.bias) + offset, to, n);
  }
}

// tanh(scale * s / cap) in place of n scores.
LLMCLI_INLINE void attention_cap(const AttentionArgs& a, float* s, int64_t n) {
  const F unit = set(a.scale / a.cap);
  for (int64_t i = 0; i < n; i += N) store(s + i, tanh(mul(load(s + i), unit)));
}

// Weights of one row in place of its scores, n visible of `width` (padded, n <= width).
// Scores are in units of 1 / unit; afterwards `top` and the weights are in units of log2. What multiplies the
// values is a weight times its value's scale, where there are any.
template <class P>
LLMCLI_INLINE void attention_weights(const float* s, typename P::Element* p, int64_t n, int64_t width,
                                     float unit, const float* scale, float* block_top, float* block_sum) {
  F high = set(-INFINITY);
  int64_t i = 0;
  for (; i + N <= n; i += N) high = max(high, load(s + i));
  const F last = i < n ? load_n(s + i, n - i, -INFINITY) : set(-INFINITY);
  high = max(high, last);
  float top = reduce_max(high) * unit;
  const float shift = top == -INFINITY ? 0.0f : -top;
  F sum = zero();
  for (i = 0; i + N <= n; i += N) {
    const F w = exp2(fma(load(s + i), set(unit), set(shift)));
    sum = add(sum, w);
    P::store(p + i, scale ? mul(w, load(scale + i)) : w);
  }
  if (i < n) {
    const F w = exp2(fma(last, set(unit), set(shift)));
    sum = add(sum, w);
    P::store(p + i, scale ? mul(w, load_n(scale + i, n - i)) : w);
    i += N;
  }
  for (; i < width; i += N) {
    P::store(p + i, zero());
    asm volatile("");  // no call of memset for so little
  }
  *block_top = n > 0 ? top : -INFINITY;
  *block_sum = reduce_add(sum);
}

// A step multiplies kPair values at once: makes the packed ones from n to the end of its step zero.
template <class P>
LLMCLI_INLINE void attention_hide(AttentionTile<P>& t, int64_t j, int64_t n) {
  P::clear_after(t.v + (t.shared ? j : 0) * kAttentionBlock * t.columns, t.columns, n);
  if (t.packed > j) t.packed = j;
}

// What a block contributes: the factors of the running result and of the block's, and the new maximum.
template <class P>
LLMCLI_INLINE void attention_merge_factors(AttentionTile<P>& t, const float* block_top,
                                           const float* block_sum) {
  for (int64_t r = 0; r < t.rows; r += N) {
    const F old = load(t.top + r), own = load(block_top + r);
    const F top = max(old, own);
    const F base = select(less(top, set(-3.4028234e38f)), zero(), top);  // -inf: nothing seen so far
    const F keep = exp2(sub(old, base)), take = exp2(sub(own, base));
    store(t.top + r, top);
    store(t.sum + r, fma(load(block_sum + r), take, mul(load(t.sum + r), keep)));
    store(t.keep + r, keep);
    store(t.take + r, take);
  }
}

// scores[row][key] = A * B for `rows` rows, B in panels of `width` columns. A depth above 64 is summed in
// parts: shorter chains of roundings; a matrix unit sums in short chains by itself.
template <class P>
LLMCLI_INLINE void attention_products(float* scores, int64_t rows, const typename P::Element* a,
                                      int64_t a_stride, const typename P::Element* b, int64_t vectors,
                                      int64_t depth, int64_t width = kPanel) {
  if constexpr (P::kUnit > P::kPair)
    return P::store_tile(rows, a, a_stride, b, width * P::kPair, vectors, (depth + 1) / 2, scores,
                         kAttentionBlock);
  constexpr int64_t kPart = 64;
  for (int64_t d = 0; d < depth; d += kPart) {
    const int64_t part = depth - d < kPart ? depth - d : kPart;
    tile<P>(rows, a + d, a_stride, b + d * width, width * P::kPair, vectors, (part + P::kPair - 1) / P::kPair,
            [&](int64_t i, int64_t u, F x) __attribute__((always_inline)) {
              float* y = scores + i * kAttentionBlock + u * N;
              store(y, d == 0 ? x : add(load(y), x));
            });
  }
}

// Merges block j of Keys (StridedKeys, CachedKeys) into the running result of a tile.
template <class P, class Keys>
void attention_block(const AttentionArgs& a, AttentionTile<P>& t, int64_t j) {
  const int64_t key = j * kAttentionBlock;
  for (int64_t r = 0; r < t.rows; ++r) {
    const int64_t n = t.limit[r] - key;
    t.seen[r] = static_cast<int32_t>(n < 0 ? 0 : n < kAttentionBlock ? n : kAttentionBlock);
  }
  const int64_t most = t.seen[t.rows - 1], least = t.seen[0];
  const auto end_of = [&t](int64_t r) { return r + P::kRows < t.rows ? r + P::kRows : t.rows; };

  const AttentionBlock<P> block = Keys::template block<P>(a, t, j);
  if (!block.k) {
    Keys::template direct<P>(
        a, [&](auto* e) { cached_scores<P, std::remove_pointer_t<decltype(e)>>(a, t, j, most); });
  }
  for (int64_t c = 0; block.k && c < most; c += kPanel) {
    const int64_t n = most - c < kPanel ? most - c : kPanel;
    for (int64_t r = 0; r < t.rows; r = end_of(r)) {
      const int64_t visible = t.seen[end_of(r) - 1] - c;
      if (visible <= 0) continue;
      const int64_t vectors = ((visible < n ? visible : n) + N - 1) / N;
      attention_products<P>(t.s + r * kAttentionBlock + c, end_of(r) - r, t.q + r * t.depth, t.depth,
                            block.keys(c), vectors, a.D, block.width);
    }
  }

  Keys::template fetch<P>(a, t, j);
  // A scale of zero or less would turn the mask or the maximum around: scale the scores first.
  const bool capped = a.cap > 0.0f, scaled = a.bias != nullptr || capped || !(a.scale > 0.0f);
  const F unit = set((capped ? a.cap : a.scale) * kLog2e);
  for (int64_t r = 0; r < t.rows; ++r) {
    float* s = t.s + r * kAttentionBlock;
    const int64_t n = t.seen[r], width = padded<P>(t.seen[end_of(r / P::kRows * P::kRows) - 1]);
    if (block.k_scale)
      for (int64_t i = 0; i < n; i += N) store(s + i, mul(load(s + i), load(block.k_scale + i)));
    if (scaled) {
      if (a.bias) attention_bias(a, t.bias, t.b, t.h_of(r), t.t_of(r), key, n);
      if (capped) attention_cap(a, s, n);
      for (int64_t i = 0; i < n; i += N)
        store(s + i, a.bias ? fma(load(s + i), unit, load(t.bias + i)) : mul(load(s + i), unit));
    }
    attention_weights<P>(s, t.p + r * t.kWeights, n, width, scaled ? 1.0f : a.scale * kLog2e, block.v_scale,
                         t.block_top + r, t.block_sum + r);
  }
  attention_merge_factors(t, t.block_top, t.block_sum);

  // A zero weight does not hide an infinite or NaN value: such rows of V, to the end of a step, are dropped
  // for those who do not see them, one query row at a time.
  const bool together = Keys::template finite<P>(a, t, j, least, round_up(most, P::kUnit));
  const typename P::Element* const v =
      together || P::kPair == 1 ? block.v : Keys::template own<P>(t, j, block);
  for (int64_t end = t.rows; end > 0;) {
    const int64_t r = together ? (end - 1) / P::kRows * P::kRows : end - 1;
    const int64_t n = t.seen[end - 1];
    if (!together && P::kPair > 1) attention_hide<P>(t, j, n);
    if (!block.k) {
      Keys::template direct<P>(
          a, [&](auto* e) { cached_sums<P, std::remove_pointer_t<decltype(e)>>(a, t, j, r, end - r, n); });
      end = r;
      continue;
    }
    tile<P>(end - r, t.p + r * t.kWeights, t.kWeights, v, block.v_stride, t.columns / N,
            (n + P::kPair - 1) / P::kPair, [&](int64_t i, int64_t u, F sum) __attribute__((always_inline)) {
              attention_merge(t.o + (r + i) * t.columns + u * N, sum, t.keep[r + i], t.take[r + i]);
            });
    end = r;
  }
}

}  // namespace llmcli::cpu::LLMCLI_ISA
