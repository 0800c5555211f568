// A tile of query rows: where it stands, its scratch, and the packed keys and values that tiles share.
#pragma once

namespace llmcli::cpu::LLMCLI_ISA {

// Few rows read V where it lies; more rows share a packed copy.
constexpr int64_t kPackRows = kTileRows;
// Keys of one batch row, in elements, that stay in the caches from call to call: prefetching them costs more
// than it gains.
constexpr int64_t kCachedElements = 1 << 18;
constexpr int64_t kAttentionAhead = 32;
constexpr float kLog2e = 1.44269504f;
constexpr double kLn2 = 0.69314718055994531;

// Where a tile stands and its scratch. Rows are the query heads of one key/value head, interleaved:
// row = t * (H / G) + h, so that the number of visible keys never falls from one row to the next.
template <class P>
struct AttentionTile {
  using Element = typename P::Element;
  static constexpr int64_t kWeights = kAttentionBlock * 4 / sizeof(Element);  // row stride of p, in elements

  int64_t b = -1, g = -1;  // batch row, key/value head
  int64_t first, rows;     // of the group's rows
  int64_t repeat;          // H / G
  int64_t keys;            // S_b
  int64_t depth;           // elements of a packed row of q or column of k
  int64_t columns;         // D rounded up to vectors
  bool shared;             // several tiles share the packed blocks of (b, g); else one block at a time
  int64_t packed = 0;      // shared blocks that are there
  bool ahead;              // whether to prefetch the next block, too large for the caches
  int64_t next_block = 0, next_head = 0;
  Element *q, *k, *v, *p;  // p overwrites s
  float *s, *o, *bias;
  float *top, *sum, *block_top, *block_sum, *keep, *take;  // one per row
  int32_t *limit, *seen;  // one per row: visible keys, and those in the block

  static int64_t packed_blocks(const AttentionArgs& a) {
    return attention_tiles(a) > 1 ? attention_blocks(a) : 1;
  }
  static int64_t bytes(const AttentionArgs& a) {
    constexpr int64_t R = kAttentionRows, e = sizeof(Element);
    const int64_t depth = round_up(a.D, N * P::kPair), columns = round_up(a.D, N);
    return R * depth * e + packed_blocks(a) * kAttentionBlock * (depth + columns) * e +
           R * (kAttentionBlock + columns) * 4 + kAttentionBlock * 4 + 8 * R * 4;
  }

  AttentionTile(const AttentionArgs& a, void* scratch) {
    constexpr int64_t R = kAttentionRows;
    repeat = a.H / a.G;
    depth = round_up(a.D, N * P::kPair);
    columns = round_up(a.D, N);
    shared = attention_tiles(a) > 1;
    ahead = !shared && a.S * a.G * a.D > kCachedElements;
    const int64_t room = packed_blocks(a) * kAttentionBlock;
    q = static_cast<Element*>(scratch);
    k = q + R * depth;
    v = k + room * depth;
    s = reinterpret_cast<float*>(v + room * columns);
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

// How many of a batch row's keys query t sees: causal is aligned bottom-right.
LLMCLI_INLINE int64_t attention_limit(const AttentionArgs& a, int64_t keys, int64_t t) {
  const int64_t last = t + keys - a.T + 1;
  return !a.causal ? keys : last < 0 ? 0 : last;
}

// Goes to a tile: packs q, finds what each row sees, clears the running result.
template <class P, typename T>
void attention_open(const AttentionArgs& a, AttentionTile<P>& t, int64_t b, int64_t g, int64_t index) {
  if (t.b != b || t.g != g) t.packed = 0;
  t.b = b;
  t.g = g;
  t.first = index * kAttentionRows;
  const int64_t all = a.T * t.repeat;
  t.rows = all - t.first < kAttentionRows ? all - t.first : kAttentionRows;
  t.keys = a.k_lengths ? a.k_lengths[b] : a.S;
  const T* q = static_cast<const T*>(a.q) + b * a.q_b;
  for (int64_t r = 0; r < t.rows; ++r) {
    t.limit[r] = static_cast<int32_t>(attention_limit(a, t.keys, t.t_of(r)));
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

LLMCLI_INLINE void attention_merge(float* o, F block, float keep, float take) {
  store(o, fma(block, set(take), mul(load(o), set(keep))));
}

// Starts loading N keys and values that come later, a few lines at a time, so that they come while the
// arithmetic goes on. Where a head's keys lie one after the other: all elements of those kAttentionAhead
// after key j * kAttentionBlock + c, in the order of memory, which sets the hardware's own prefetching going.
// Where heads are interleaved: a vector of elements, from d on, of keys from c on of the block that comes
// next.
template <typename T, class P>
LLMCLI_INLINE void attention_fetch(const AttentionArgs& a, const AttentionTile<P>& t, int64_t j, int64_t c,
                                   int64_t d) {
  constexpr int64_t kLine = 64 / static_cast<int64_t>(sizeof(T));
  const bool along = a.k_s == a.D && a.v_s == a.D;
  if (along && d > 0) return;
  const int64_t key = along ? j * kAttentionBlock + c + kAttentionAhead : t.next_block * kAttentionBlock + c;
  const int64_t head = along ? t.g : t.next_head, width = along ? a.D : d + 1;
  const T* const k = static_cast<const T*>(a.k) + t.b * a.k_b + head * a.k_g;
  const T* const v = static_cast<const T*>(a.v) + t.b * a.v_b + head * a.v_g;
  const int64_t end = key + N < t.keys ? key + N : t.keys;
  for (int64_t s = key; s < end; ++s)
    for (int64_t i = d; i < width; i += kLine) __builtin_prefetch(k + s * a.k_s + i, 0, 3);
  for (int64_t s = key; s < end; ++s)
    for (int64_t i = d; i < width; i += kLine) __builtin_prefetch(v + s * a.v_s + i, 0, 3);
}

// Keys and values of one block as the products read them. Valid until the next call.
template <class P>
struct AttentionBlock {
  const typename P::Element *k, *v;
  int64_t v_stride;                                    // elements per step
  int64_t width, depth;                                // columns and padded depth of a panel of k
  const float *k_scale = nullptr, *v_scale = nullptr;  // one per key, of scores and of weights

  const typename P::Element* keys(int64_t c) const {
    return k + c / width * width * depth + c % width * P::kPair;
  }
};

// Keys and values of T that lie by strides.
template <typename T>
struct StridedKeys {
  template <class P>
  static LLMCLI_INLINE AttentionBlock<P> block(const AttentionArgs& a, AttentionTile<P>& t, int64_t j);
  // Whether the values from row `begin` to the end of a step are finite.
  template <class P>
  static LLMCLI_INLINE bool finite(const AttentionArgs& a, const AttentionTile<P>& t, int64_t j,
                                   int64_t begin, int64_t end);
  template <class P, class Call>
  static LLMCLI_INLINE void direct(const AttentionArgs&, const Call&) {}
  template <class P>
  static LLMCLI_INLINE void fetch(const AttentionArgs&, const AttentionTile<P>&, int64_t) {}
  // Values that may be changed.
  template <class P>
  static LLMCLI_INLINE const typename P::Element* own(const AttentionTile<P>&, int64_t,
                                                      const AttentionBlock<P>& block) {
    return block.v;
  }
};

template <typename T>
template <class P>
LLMCLI_INLINE AttentionBlock<P> StridedKeys<T>::block(const AttentionArgs& a, AttentionTile<P>& t,
                                                      int64_t j) {
  const int64_t slot = t.shared ? j : 0, key = j * kAttentionBlock;
  auto* const k = t.k + slot * kAttentionBlock * t.depth;
  auto* const v = t.v + slot * kAttentionBlock * t.columns;
  const T* const values = static_cast<const T*>(a.v) + t.b * a.v_b + t.g * a.v_g + key * a.v_s;
  const bool in_place = P::in_place(values) && t.rows <= kPackRows && a.D % N == 0;
  if (j >= t.packed) {
    const T* const keys = static_cast<const T*>(a.k) + t.b * a.k_b + t.g * a.k_g + key * a.k_s;
    const int64_t n = t.keys - key < kAttentionBlock ? t.keys - key : kAttentionBlock;
    if (t.ahead) {
      constexpr int64_t kStep = N * P::kPair;
      for (int64_t c = 0; c < n; c += N) {
        auto* const to = k + c / kPanel * kPanel * t.depth + c % kPanel * P::kPair;
        for (int64_t d = 0; d < a.D; d += kStep) {
          attention_fetch<T>(a, t, j, c, d);
          pack_transposed<P>(to + d * kPanel, keys + c * a.k_s + d, a.k_s, n - c < N ? n - c : N,
                             a.D - d < kStep ? a.D - d : kStep);
        }
      }
    } else {
      for (int64_t c = 0; c < n; c += kPanel)
        pack_transposed<P>(k + c * t.depth, keys + c * a.k_s, a.k_s, n - c < kPanel ? n - c : kPanel, a.D);
    }
    if (!in_place) P::pack_depths(v, t.columns, values, a.v_s, n, a.D);
    if (t.shared && !in_place) t.packed = j + 1;
  }
  if (in_place) return {k, reinterpret_cast<const typename P::Element*>(values), a.v_s, kPanel, t.depth};
  return {k, v, t.columns * P::kPair, kPanel, t.depth};
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

template <typename T>
template <class P>
LLMCLI_INLINE bool StridedKeys<T>::finite(const AttentionArgs& a, const AttentionTile<P>& t, int64_t j,
                                          int64_t begin, int64_t end) {
  const int64_t key = j * kAttentionBlock, past = end < t.keys - key ? end : t.keys - key;
  const T* const v = static_cast<const T*>(a.v) + t.b * a.v_b + t.g * a.v_g + key * a.v_s;
  return begin >= past || all_finite(v + begin * a.v_s, a.v_s, past - begin, a.D);
}

}  // namespace llmcli::cpu::LLMCLI_ISA
