// One tile of query rows against one block of keys: scores, weights, and the product with V.
#pragma once

namespace llmcli::cpu::LLMCLI_ISA {

// Few rows read V where it lies; more rows share a packed copy.
constexpr int64_t kPackRows = kTileRows;
constexpr float kLog2e = 1.44269504f, kLn2 = 0.693147181f;

// Where a tile stands and its scratch. Rows are the query heads of one key/value head, interleaved:
// row = t * (H / G) + h, so that the number of visible keys never falls from one row to the next.
template <class P>
struct AttentionTile {
  using Element = typename P::Element;
  static constexpr int64_t kWeights = kAttentionBlock * 4 / sizeof(Element);  // row stride of p, in elements

  int64_t b, g;                // batch row, key/value head
  int64_t first, rows;         // of the group's rows
  int64_t repeat;              // H / G
  int64_t keys;                // S_b
  int64_t depth;               // elements of a packed row of q
  int64_t columns;             // D rounded up to vectors
  Element *q, *panel, *v, *p;  // p overwrites s
  float *s, *o, *bias;
  float *top, *sum, *block_top, *block_sum, *keep, *take;  // one per row
  int32_t *limit, *seen;  // one per row: visible keys, and those in the block

  static int64_t bytes(int64_t D) {
    constexpr int64_t R = kAttentionRows, e = sizeof(Element);
    const int64_t depth = round_up(D, N * P::kPair), columns = round_up(D, N);
    return (R + kPanel) * depth * e + kAttentionBlock * columns * e + R * (kAttentionBlock + columns) * 4 +
           kAttentionBlock * 4 + 8 * R * 4;
  }

  AttentionTile(const AttentionArgs& a, void* scratch) {
    constexpr int64_t R = kAttentionRows;
    repeat = a.H / a.G;
    depth = round_up(a.D, N * P::kPair);
    columns = round_up(a.D, N);
    q = static_cast<Element*>(scratch);
    panel = q + R * depth;
    v = panel + kPanel * depth;
    s = reinterpret_cast<float*>(v + kAttentionBlock * columns);
    p = reinterpret_cast<Element*>(s);
    o = s + R * kAttentionBlock;
    bias = o + R * columns;
    top = bias + kAttentionBlock;
    sum = top + R;
    block_top = sum + R;
    block_sum = block_top + R;
    keep = block_sum + R;
    take = keep + R;
    limit = reinterpret_cast<int32_t*>(take + R);
    seen = limit + R;
  }

  int64_t t_of(int64_t r) const { return (first + r) / repeat; }
  int64_t h_of(int64_t r) const { return g * repeat + (first + r) % repeat; }
  int64_t blocks() const {  // that the last row, and with it any row, sees
    return rows ? (limit[rows - 1] + kAttentionBlock - 1) / kAttentionBlock : 0;
  }
};

// Goes to a tile: packs q, finds what each row sees, clears the running result.
template <class P, typename T>
void attention_open(const AttentionArgs& a, AttentionTile<P>& t, int64_t b, int64_t g, int64_t index) {
  t.b = b;
  t.g = g;
  t.first = index * kAttentionRows;
  const int64_t all = a.T * t.repeat;
  t.rows = all - t.first < kAttentionRows ? all - t.first : kAttentionRows;
  t.keys = a.k_lengths ? a.k_lengths[b] : a.S;
  const T* q = static_cast<const T*>(a.q) + b * a.q_b;
  for (int64_t r = 0; r < t.rows; ++r) {
    int64_t limit = t.keys;
    if (a.causal) {
      limit = t.t_of(r) + t.keys - a.T + 1;
      limit = limit < 0 ? 0 : limit;
    }
    t.limit[r] = static_cast<int32_t>(limit);
    P::pack_row(t.q + r * t.depth, q + t.t_of(r) * a.q_t + t.h_of(r) * a.q_h, a.D);
  }
  for (int64_t r = 0; r < round_up(t.rows, N); r += N) {
    store(t.top + r, set(-INFINITY));
    store(t.sum + r, zero());
    store(t.block_top + r, set(-INFINITY));
    store(t.block_sum + r, zero());
  }
  for (int64_t i = 0; i < t.rows * t.columns; i += N) store(t.o + i, zero());
}

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

// Weights of one row in place of its scores, n visible of `width` (a multiple of N, n <= width).
// Scores are in units of 1 / unit; afterwards `top` and the weights are in units of log2.
template <class P>
LLMCLI_INLINE void attention_weights(const float* s, typename P::Element* p, int64_t n, int64_t width,
                                     float unit, float* block_top, float* block_sum) {
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
    P::store(p + i, w);
  }
  if (i < n) {
    const F w = exp2(fma(last, set(unit), set(shift)));
    sum = add(sum, w);
    P::store(p + i, w);
    i += N;
  }
  for (; i < width; i += N) P::store(p + i, zero());
  *block_top = n > 0 ? top : -INFINITY;
  *block_sum = reduce_add(sum);
}

// Whether elements [0, n) of every row are finite.
template <typename T>
LLMCLI_INLINE bool all_finite(const T* x, int64_t stride, int64_t rows, int64_t n) {
  F sum = zero();
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t i = 0; i < n; i += N) {
      const F y = n - i >= N ? load(x + r * stride + i) : load_n(x + r * stride + i, n - i);
      sum = fma(y, zero(), sum);
    }
  return reduce_add(sum) == 0.0f;
}

// Scores and weights of block j, then take(row, vector, sum) for each vector of its weights times V.
// between() runs after the weights of all rows are there and before the first take.
template <class P, typename T, class Between, class Take>
LLMCLI_INLINE void attention_block(const AttentionArgs& a, AttentionTile<P>& t, int64_t j,
                                   const Between& between, const Take& take) {
  const int64_t key = j * kAttentionBlock;
  const T* k = static_cast<const T*>(a.k) + t.b * a.k_b + t.g * a.k_g + key * a.k_s;
  const T* v = static_cast<const T*>(a.v) + t.b * a.v_b + t.g * a.v_g + key * a.v_s;
  for (int64_t r = 0; r < t.rows; ++r) {
    const int64_t n = t.limit[r] - key;
    t.seen[r] = static_cast<int32_t>(n < 0 ? 0 : n < kAttentionBlock ? n : kAttentionBlock);
  }
  const int64_t most = t.seen[t.rows - 1], least = t.seen[0];
  const auto end_of = [&t](int64_t r) { return r + kTileRows < t.rows ? r + kTileRows : t.rows; };

  for (int64_t c = 0; c < most; c += kPanel) {
    const int64_t n = most - c < kPanel ? most - c : kPanel;
    pack_transposed<P>(t.panel, k + c * a.k_s, a.k_s, n, a.D);
    for (int64_t r = 0; r < t.rows; r = end_of(r)) {
      const int64_t visible = t.seen[end_of(r) - 1] - c;
      if (visible <= 0) continue;
      const int64_t vectors = ((visible < n ? visible : n) + N - 1) / N;
      float* s = t.s + r * kAttentionBlock + c;
      tile<P>(end_of(r) - r, t.q + r * t.depth, t.depth, t.panel, kPanel * P::kPair, vectors,
              (a.D + P::kPair - 1) / P::kPair,
              [&](int64_t i, int64_t u, F sum)
                  __attribute__((always_inline)) { store(s + i * kAttentionBlock + u * N, sum); });
    }
  }

  // A scale of zero or less would turn the mask or the maximum around: scale the scores first.
  const bool scaled = a.bias != nullptr || !(a.scale > 0.0f);
  const F unit = set(a.scale * kLog2e);
  for (int64_t r = 0; r < t.rows; ++r) {
    float* s = t.s + r * kAttentionBlock;
    const int64_t n = t.seen[r], width = round_up(t.seen[end_of(r / kTileRows * kTileRows) - 1], N);
    if (scaled) {
      if (a.bias) attention_bias(a, t.bias, t.b, t.h_of(r), t.t_of(r), key, n);
      for (int64_t i = 0; i < n; i += N)
        store(s + i, a.bias ? fma(load(s + i), unit, load(t.bias + i)) : mul(load(s + i), unit));
    }
    attention_weights<P>(s, t.p + r * t.kWeights, n, width, scaled ? 1.0f : a.scale * kLog2e, t.block_top + r,
                         t.block_sum + r);
  }
  between();

  const typename P::Element* values;
  int64_t stride;
  if (P::in_place(v) && t.rows <= kPackRows && a.D % N == 0) {
    values = reinterpret_cast<const typename P::Element*>(v);
    stride = a.v_s;
  } else {
    P::pack_depths(t.v, t.columns, v, a.v_s, most, a.D);
    values = t.v;
    stride = t.columns * P::kPair;
  }
  // A zero weight does not hide an infinite or NaN value: such rows of V are dropped for those who do not
  // see them, one query row at a time.
  const bool together = least == most || all_finite(v + least * a.v_s, a.v_s, most - least, a.D);
  for (int64_t end = t.rows; end > 0;) {
    const int64_t r = together ? (end - 1) / kTileRows * kTileRows : end - 1;
    const int64_t n = t.seen[end - 1];
    if (!together) P::clear_after(t.v, t.columns, n);
    tile<P>(end - r, t.p + r * t.kWeights, t.kWeights, values, stride, t.columns / N,
            (n + P::kPair - 1) / P::kPair,
            [&](int64_t i, int64_t u, F sum) __attribute__((always_inline)) { take(r + i, u, sum); });
    end = r;
  }
}

}  // namespace llmcli::cpu::LLMCLI_ISA
