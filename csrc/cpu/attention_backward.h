// Gradients of softmax attention: dq, dk, dv and the scores' own gradient for a bias, from lse (Dao et al.
// 2022, FlashAttention, algorithm 4). With p recomputed as e^(s - lse), delta = grad . out of each row:
//   dv = p^T grad    dp = grad v^T    ds = p (dp - delta)    dq = scale ds k    dk = scale ds^T q
// A cap multiplies ds by the derivative of its tanh.
//
// An item is a key/value head, so nothing is shared and every sum has one order: dk and dv of a block of keys
// over the tiles of rows in ascending order, dq of a row over the blocks of keys in ascending order.
// Memory: O(T) floats of scratch per thread (dq in float32, lse, delta), and for a bias gradient (B,H,T,S).
// Five products per block and tile; the others of the published algorithms that split over queries need
// seven.
#pragma once
#include "vec_loop.h"

namespace llmcli::cpu::LLMCLI_ISA {

constexpr int64_t kBackwardRows = 96;  // rows of a tile: the depth of the products for dk and dv

template <class P>
struct AttentionGradient {
  using Element = typename P::Element;
  static constexpr int64_t R = kBackwardRows, K = kAttentionBlock;
  static constexpr bool kWide = P::kPair == 1;  // rows and depths, s and p have one layout: share the memory

  int64_t depth, columns, rows;      // see AttentionTile; rows = T * H / G
  Element *q, *grad, *q_d, *grad_d;  // a tile of rows, as rows and as depths
  Element *k, *v, *k_d;              // a block of keys: transposed, transposed, as depths
  Element *p_t, *ds_t, *ds_r;        // (K, R), (K, R), (R, K)
  float *p, *ds, *dk, *dv, *bias;    // (R, K), (R, K), (K, columns), (K, columns), (K)
  float *dq, *lse, *low, *delta;     // (rows, columns); (rows): lse by log2, what float32 drops of it
  int32_t* limit;                    // (rows)

  // Lays the arrays out from `at`; returns the end.
  char* lay(const AttentionArgs& a, char* at) {
    depth = round_up(a.D, N * P::kPair);
    columns = round_up(a.D, N);
    rows = a.T * (a.H / a.G);
    const int64_t all = round_up(rows, 16);
    const auto elements = [&at](Element*& x, int64_t n) {
      x = reinterpret_cast<Element*>(at);
      at += round_up(n * static_cast<int64_t>(sizeof(Element)), 64);
    };
    const auto floats = [&at](float*& x, int64_t n) {
      x = reinterpret_cast<float*>(at);
      at += round_up(n * 4, 64);
    };
    elements(q, R * depth), elements(grad, R * depth);
    elements(k, K * depth), elements(v, K * depth), elements(k_d, K * columns);
    elements(p_t, K * R), elements(ds_t, K * R);
    floats(p, R * K), floats(ds, R * K), floats(dk, K * columns), floats(dv, K * columns), floats(bias, K);
    if (kWide) {
      q_d = q, grad_d = grad, ds_r = reinterpret_cast<Element*>(ds);
    } else {
      elements(q_d, R * columns), elements(grad_d, R * columns), elements(ds_r, R * K);
    }
    floats(dq, all * columns), floats(lse, all), floats(low, all), floats(delta, all);
    limit = reinterpret_cast<int32_t*>(at);
    return at + all * 4;
  }
};

// p and ds of one row in place of its scores and dp: the first n of `width`, which is padded, zeros behind.
// With kCap the scores are tanh(scale * s / cap) already; dbias, where there is one, gets what ds is before
// the cap's own derivative.
template <class P, bool kCap>
LLMCLI_INLINE void attention_backward_row(float* p, float* ds, typename P::Element* ds_r, const float* bias,
                                          float* dbias, int64_t n, int64_t width, float unit, float lse,
                                          float low, float delta) {
  for (int64_t i = 0; i < width; i += N) {
    const F x = load(p + i);
    const F s = bias ? sub(fma(x, set(unit), load(bias + i)), set(lse)) : fma(x, set(unit), set(-lse));
    F w = exp2(sub(s, set(low)));
    F g = mul(w, sub(load(ds + i), set(delta)));
    if (dbias && i < n) store_up_to(dbias + i, g, n - i);
    if constexpr (kCap) g = mul(g, tanh_slope(x));
    store(p + i, w);
    store(ds + i, g);
    if (n - i < N) {
      w = load_n(p + i, n - i);
      g = load_n(ds + i, n - i);
      store(p + i, w);
      store(ds + i, g);
    }
    if constexpr (P::kPair > 1) P::store(ds_r + i, g);
  }
}

// x (rows, kAttentionBlock) → y (n, kBackwardRows), zeros behind the rows up to what is padded.
template <class P>
LLMCLI_INLINE void attention_transpose(const float* x, typename P::Element* y, int64_t rows, int64_t n) {
  for (int64_t r = 0; r < padded<P>(rows); r += N)
    for (int64_t c = 0; c < n; c += N) {
      F t[N];
      LLMCLI_UNROLL for (int i = 0; i < N; ++i) t[i] =
          r + i < rows ? load(x + (r + i) * kAttentionBlock + c) : zero();
      transpose(t);
      LLMCLI_UNROLL for (int i = 0; i < N; ++i) P::store(y + (c + i) * kBackwardRows + r, t[i]);
    }
}

// to[row][column] += A * B for `rows` rows.
template <class P>
LLMCLI_INLINE void attention_add_product(float* to, int64_t columns, int64_t rows,
                                         const typename P::Element* a, int64_t a_stride,
                                         const typename P::Element* b, int64_t depth) {
  tile<P>(rows, a, a_stride, b, columns * P::kPair, columns / N, (depth + P::kPair - 1) / P::kPair,
          [&](int64_t i, int64_t u, F sum) __attribute__((always_inline)) {
            float* y = to + i * columns + u * N;
            store(y, add(load(y), sum));
          });
}

// Rows [first, first + rows) of head (b, g) against the block of `n` keys from `key` on, already packed.
// A zero weight does not hide an infinite or NaN value: where some rows do not see all keys, such a tile is
// cut into single rows, which pass over what they do not see.
template <class P, typename T>
void attention_backward_tile(const AttentionBackwardArgs& a, AttentionGradient<P>& w, int64_t b, int64_t g,
                             int64_t key, int64_t n, int64_t first, int64_t rows) {
  constexpr int64_t R = kBackwardRows, K = kAttentionBlock;
  const int64_t repeat = a.H / a.G;
  const auto seen = [&](int64_t r) {
    const int64_t m = w.limit[first + r] - key;
    return m < 0 ? 0 : m < n ? m : n;
  };
  const auto end_of = [rows](int64_t r) { return r + P::kRows < rows ? r + P::kRows : rows; };
  const int64_t most = seen(rows - 1), width = padded<P>(most);
  if (most == 0) return;

  for (int64_t r = 0; r < rows; ++r) {
    const int64_t t = (first + r) / repeat, h = g * repeat + (first + r) % repeat;
    P::pack_row(w.q + r * w.depth, static_cast<const T*>(a.q) + b * a.q_b + t * a.q_t + h * a.q_h, a.D);
    P::pack_row(w.grad + r * w.depth,
                static_cast<const T*>(a.grad) + b * a.grad_b + t * a.grad_t + h * a.grad_h, a.D);
  }
  if constexpr (!AttentionGradient<P>::kWide) {
    P::pack_depths(w.q_d, w.columns, w.q, w.depth, rows, a.D);
    P::pack_depths(w.grad_d, w.columns, w.grad, w.depth, rows, a.D);
  }
  const int64_t least = seen(0), step = round_up(most, P::kUnit), past = step < n ? step : n;
  if (rows > 1 && least < past) {
    const T* const keys = static_cast<const T*>(a.k) + b * a.k_b + g * a.k_g + key * a.k_s;
    if (!all_finite(keys + least * a.k_s, a.k_s, past - least, a.D) || !all_finite(w.q, w.depth, rows, a.D) ||
        !all_finite(w.grad, w.depth, rows, a.D)) {
      for (int64_t r = rows; r-- > 0;) {
        P::clear_after(w.k_d, w.columns, seen(r));
        attention_backward_tile<P, T>(a, w, b, g, key, n, first + r, 1);
      }
      return P::pack_depths(w.k_d, w.columns, keys, a.k_s, n, a.D);
    }
  }
  for (int64_t c = 0; c < most; c += kPanel)
    for (int64_t r = 0; r < rows; r = end_of(r)) {
      const int64_t visible = seen(end_of(r) - 1) - c;
      if (visible <= 0) continue;
      const int64_t vectors = ((visible < kPanel ? visible : kPanel) + N - 1) / N;
      attention_products<P>(w.p + r * K + c, end_of(r) - r, w.q + r * w.depth, w.depth, w.k + c * w.depth,
                            vectors, a.D);
      attention_products<P>(w.ds + r * K + c, end_of(r) - r, w.grad + r * w.depth, w.depth, w.v + c * w.depth,
                            vectors, a.D);
    }
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t t = (first + r) / repeat, h = g * repeat + (first + r) % repeat;
    if (a.bias) attention_bias(a, w.bias, b, h, t, key, seen(r));
    float* const dbias = a.dbias ? a.dbias + ((b * a.H + h) * a.T + t) * a.S + key : nullptr;
    const auto row = [&](auto capped, float unit) LLMCLI_INLINE_BODY {
      attention_backward_row<P, decltype(capped)::value>(
          w.p + r * K, w.ds + r * K, w.ds_r + r * K, a.bias ? w.bias : nullptr, dbias, seen(r), width,
          unit * kLog2e, w.lse[first + r], w.low[first + r], w.delta[first + r]);
    };
    if (a.cap > 0.0f) {
      attention_cap(a, w.p + r * K, width);
      row(std::true_type(), a.cap);
    } else {
      row(std::false_type(), a.scale);
    }
  }
  attention_transpose<P>(w.p, w.p_t, rows, most);
  attention_transpose<P>(w.ds, w.ds_t, rows, most);
  for (int64_t c = 0; c < most; c += P::kRows) {
    const int64_t m = most - c < P::kRows ? most - c : P::kRows;
    attention_add_product<P>(w.dv + c * w.columns, w.columns, m, w.p_t + c * R, R, w.grad_d, rows);
    attention_add_product<P>(w.dk + c * w.columns, w.columns, m, w.ds_t + c * R, R, w.q_d, rows);
  }
  for (int64_t r = 0; r < rows; r = end_of(r))
    attention_add_product<P>(w.dq + (first + r) * w.columns, w.columns, end_of(r) - r, w.ds_r + r * K, K,
                             w.k_d, seen(end_of(r) - 1));
}

// n elements of scale * x, in T.
template <typename T>
LLMCLI_INLINE void attention_write(T* to, const float* x, int64_t n, float scale) {
  for (int64_t i = 0; i < n; i += N) {
    const F y = mul(load(x + i), set(scale));
    if (n - i >= N)
      store(to + i, y);
    else
      store_n(to + i, y, n - i);
  }
}

template <class P, typename T>
void attention_backward_head(const AttentionBackwardArgs& a, AttentionGradient<P>& w, int64_t b, int64_t g) {
  constexpr int64_t K = kAttentionBlock;
  const int64_t repeat = a.H / a.G, keys = a.k_lengths ? a.k_lengths[b] : a.S;
  for (int64_t r = 0; r < w.rows; ++r) {
    const int64_t t = r / repeat, h = g * repeat + r % repeat;
    const T* grad = static_cast<const T*>(a.grad) + b * a.grad_b + t * a.grad_t + h * a.grad_h;
    const T* out = static_cast<const T*>(a.out) + ((b * a.T + t) * a.H + h) * a.D;
    F sum = zero();
    for (int64_t d = 0; d < a.D; d += N) sum = fma(load_n(grad + d, a.D - d), load_n(out + d, a.D - d), sum);
    w.delta[r] = reduce_add(sum);
    const float lse = a.lse[(b * a.H + h) * a.T + t];
    const double exact = lse / kLn2;
    w.lse[r] =
        lse == -INFINITY ? INFINITY : static_cast<float>(exact);  // a row that saw nothing: weights of 0
    w.low[r] = lse == -INFINITY ? 0.0f : static_cast<float>(exact - w.lse[r]);
    w.limit[r] = static_cast<int32_t>(attention_limit(a, keys, t));
  }
  for (int64_t i = 0; i < w.rows * w.columns; i += N) store(w.dq + i, zero());

  const T* k = static_cast<const T*>(a.k) + b * a.k_b + g * a.k_g;
  const T* v = static_cast<const T*>(a.v) + b * a.v_b + g * a.v_g;
  for (int64_t key = 0; key < a.S; key += K) {
    const int64_t left = keys - key,
                  n = left < 0   ? 0
                      : left < K ? left
                                 : K,
                  end = a.S - key < K ? a.S - key : K;
    for (int64_t i = 0; i < K * w.columns; i += N) {
      store(w.dk + i, zero());
      store(w.dv + i, zero());
    }
    for (int64_t c = 0; c < n; c += kPanel) {
      const int64_t m = n - c < kPanel ? n - c : kPanel;
      pack_transposed<P>(w.k + c * w.depth, k + (key + c) * a.k_s, a.k_s, m, a.D);
      pack_transposed<P>(w.v + c * w.depth, v + (key + c) * a.v_s, a.v_s, m, a.D);
    }
    P::pack_depths(w.k_d, w.columns, k + key * a.k_s, a.k_s, n, a.D);
    for (int64_t r = 0; r < w.rows && n > 0; r += kBackwardRows)
      attention_backward_tile<P, T>(a, w, b, g, key, n, r,
                                    w.rows - r < kBackwardRows ? w.rows - r : kBackwardRows);
    for (int64_t i = 0; i < end; ++i) {
      const int64_t at = ((b * a.S + key + i) * a.G + g) * a.D;
      attention_write(static_cast<T*>(a.dk) + at, w.dk + i * w.columns, a.D, a.scale);
      attention_write(static_cast<T*>(a.dv) + at, w.dv + i * w.columns, a.D, 1.0f);
    }
  }
  for (int64_t r = 0; r < w.rows; ++r) {
    const int64_t t = r / repeat, h = g * repeat + r % repeat;
    attention_write(static_cast<T*>(a.dq) + ((b * a.T + t) * a.H + h) * a.D, w.dq + r * w.columns, a.D,
                    a.scale);
  }
}

template <typename T>
void attention_backward_items(const AttentionBackwardArgs& a, int64_t begin, int64_t end, void* scratch) {
  using P = typename ProductOf<T>::type;
  [[maybe_unused]] typename P::Session session;
  AttentionGradient<P> w;
  w.lay(a, static_cast<char*>(scratch));
  for (int64_t item = begin; item < end; ++item) attention_backward_head<P, T>(a, w, item / a.G, item % a.G);
}

inline void attention_backward(const AttentionBackwardArgs& a, int64_t begin, int64_t end, void* scratch) {
  switch (a.dtype) {
    case DType::f32:
      return attention_backward_items<float>(a, begin, end, scratch);
    case DType::bf16:
      return attention_backward_items<bf16>(a, begin, end, scratch);
    case DType::f16:
      return attention_backward_items<f16>(a, begin, end, scratch);
  }
}

inline int64_t attention_backward_scratch(const AttentionArgs& a) {
  char* const base = nullptr;
  if (a.dtype == DType::bf16) return AttentionGradient<ProductOf<bf16>::type>().lay(a, base) - base;
  return AttentionGradient<WideProduct>().lay(a, base) - base;
}

}  // namespace llmcli::cpu::LLMCLI_ISA
