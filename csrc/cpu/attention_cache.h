// Keys and values in blocks of kAttentionBlock positions, as the products of attention read them: decoding
// streams a head from its first byte to its last and neither transposes nor packs.
//
// A block of one head holds, one after the other, D padded with zeros to W = cache_width(D):
//   keys    [2][W / pair][64][pair]   two panels, transposed
//   values  [128 / pair][W][pair]
//   scales  [128] of keys, [128] of values, float32: int8 alone
// pair is 2 for bfloat16, else 1. An int8 key or value is scale * q, q = round(x * (127 / max |x|)), scale =
// max |x| / 127 over one position and head; where it has NaN or infinity, q is 0 and the scale NaN. Products
// take q as it is, exact in every operand type; scores and weights are multiplied by the scales. So every
// tile, one row or many, gives the same bits.
#pragma once
#include "row_bytes.h"

namespace llmcli::cpu::LLMCLI_ISA {

constexpr int64_t kCachePanel = 64;

template <typename E>
constexpr int kCachePair = 1;
template <>
constexpr int kCachePair<bf16> = 2;

// Rows r and r + 1 of what lies in [rows / pair][width][pair], N columns from c on.
template <typename E>
LLMCLI_INLINE void cache_rows(const E* from, int64_t width, int64_t r, int64_t c, F* low, F* high) {
  *low = load(from + r * width + c);
  *high = load(from + (r + 1) * width + c);
}
template <>
LLMCLI_INLINE void cache_rows<bf16>(const bf16* from, int64_t width, int64_t r, int64_t c, F* low, F* high) {
  load_pairs(from + r * width + 2 * c, low, high);
}

// The first `to_width` columns of the same as operands of P, exactly: an even number of rows, then zeros up
// to row `padded`.
template <class P, typename E>
LLMCLI_INLINE void cache_unpack(typename P::Element* to, int64_t to_width, const E* from, int64_t width,
                                int64_t rows, int64_t padded) {
  for (int64_t r = 0; r < rows; r += 2)
    for (int64_t c = 0; c < to_width; c += N) {
      F low, high;
      cache_rows(from, width, r, c, &low, &high);
      P::store_rows(to + r * to_width + c * P::kPair, to_width, low, high);
    }
  if (rows < padded)
    std::memset(to + rows * to_width, 0,
                static_cast<size_t>((padded - rows) * to_width) * sizeof(typename P::Element));
}

template <typename E>
LLMCLI_INLINE const E* cache_block(const AttentionArgs& a, int64_t b, int64_t g, int64_t j) {
  return reinterpret_cast<const E*>(a.cache + b * a.cache_b + g * a.cache_g +
                                    j * cache_bytes(a.cache_type, a.D));
}

// Calls f with a null pointer to what the cache holds.
template <class Call>
LLMCLI_INLINE auto cache_switch(CacheType type, const Call& f) {
  switch (type) {
    case CacheType::f32:
      return f(static_cast<float*>(nullptr));
    case CacheType::bf16:
      return f(static_cast<bf16*>(nullptr));
    case CacheType::f16:
      return f(static_cast<f16*>(nullptr));
    default:
      return f(static_cast<int8_t*>(nullptr));
  }
}

// Few rows read what they must convert where it lies; more rows share a converted copy.
template <class P>
LLMCLI_INLINE bool cache_direct(const AttentionTile<P>& t) {
  return P::kUnit == P::kPair && t.rows <= kPackRows;
}

// One step of a left operand against N columns of stored rows, see tile.h.
template <class P, typename E>
LLMCLI_INLINE F cache_operand(const E* from, int64_t width, int64_t step, int64_t c) {
  F low, high;
  if constexpr (P::kPair == 2) {
    cache_rows(from, width, 2 * step, c, &low, &high);
    return P::join(low, high);
  } else if constexpr (kCachePair<E> == 2) {
    cache_rows(from, width, step / 2 * 2, c, &low, &high);
    return step % 2 ? high : low;
  } else {
    return load(from + step * width + c);
  }
}

// register_tile on stored rows.
template <class P, typename E, int kRows, int kVectors, class Take>
LLMCLI_INLINE void cache_register_tile(const typename P::Element* a, int64_t a_stride, const E* b,
                                       int64_t width, int64_t c, int64_t steps, const Take& take) {
  F sum[kRows][kVectors];
  LLMCLI_UNROLL for (int i = 0; i < kRows; ++i) LLMCLI_UNROLL for (int v = 0; v < kVectors; ++v) sum[i][v] =
      zero();
  for (int64_t k = 0; k < steps; ++k) {
    F y[kVectors];
    LLMCLI_UNROLL for (int v = 0; v < kVectors; ++v) y[v] = cache_operand<P>(b, width, k, c + v * N);
    LLMCLI_UNROLL for (int i = 0; i < kRows; ++i) {
      const F x = P::broadcast(a + i * a_stride + k * P::kPair);
      LLMCLI_UNROLL for (int v = 0; v < kVectors; ++v) sum[i][v] = P::multiply_add(x, y[v], sum[i][v]);
    }
  }
  LLMCLI_UNROLL for (int i = 0; i < kRows; ++i) LLMCLI_UNROLL for (int v = 0; v < kVectors; ++v)
      take(i, c / N + v, sum[i][v]);
}

template <class P, typename E, int kRows, class Take>
LLMCLI_INLINE void cache_columns(const typename P::Element* a, int64_t a_stride, const E* b, int64_t width,
                                 int64_t columns, int64_t steps, const Take& take) {
  int64_t c = 0;
  for (; columns - c >= kPanel; c += kPanel)
    cache_register_tile<P, E, kRows, kTileVectors>(a, a_stride, b, width, c, steps, take);
  for (; c < columns; c += N) cache_register_tile<P, E, kRows, 1>(a, a_stride, b, width, c, steps, take);
}

// tile on stored rows.
template <class P, typename E, class Take>
LLMCLI_INLINE void cache_tile(int64_t rows, const typename P::Element* a, int64_t a_stride, const E* b,
                              int64_t width, int64_t columns, int64_t steps, const Take& take) {
  for (int64_t i = 0; i < rows;) {
    const auto shifted = [&](int64_t r, int64_t v, F sum) LLMCLI_INLINE_BODY { take(i + r, v, sum); };
    if (rows - i >= 4) {
      cache_columns<P, E, 4>(a + i * a_stride, a_stride, b, width, columns, steps, shifted);
      i += 4;
    } else {
      cache_columns<P, E, 1>(a + i * a_stride, a_stride, b, width, columns, steps, shifted);
      i += 1;
    }
  }
}

// attention_products and the product with V on stored rows.
template <class P, typename E>
void cached_scores(const AttentionArgs& a, const AttentionTile<P>& t, int64_t j, int64_t most) {
  constexpr int64_t kPart = 64;
  const E* const keys = cache_block<E>(a, t.b, t.g, j);
  for (int64_t c = 0; c < most; c += kCachePanel)
    for (int64_t d = 0; d < a.D; d += kPart) {
      const int64_t part = a.D - d < kPart ? a.D - d : kPart;
      cache_tile<P>(t.rows, t.q + d, t.depth, keys + c * cache_width(a.D) + d * kCachePanel, kCachePanel,
                    round_up(most - c < kCachePanel ? most - c : kCachePanel, N),
                    (part + P::kPair - 1) / P::kPair, [&](int64_t i, int64_t v, F x) LLMCLI_INLINE_BODY {
                      float* y = t.s + i * kAttentionBlock + c + v * N;
                      store(y, d == 0 ? x : add(load(y), x));
                    });
    }
}
template <class P, typename E>
void cached_sums(const AttentionArgs& a, const AttentionTile<P>& t, int64_t j, int64_t r, int64_t rows,
                 int64_t n) {
  const int64_t width = cache_width(a.D);
  cache_tile<P>(rows, t.p + r * t.kWeights, t.kWeights,
                cache_block<E>(a, t.b, t.g, j) + kAttentionBlock * width, width, t.columns,
                (n + P::kPair - 1) / P::kPair, [&](int64_t i, int64_t v, F sum) LLMCLI_INLINE_BODY {
                  attention_merge(t.o + (r + i) * t.columns + v * N, sum, t.keep[r + i], t.take[r + i]);
                });
}

template <class P, typename E>
AttentionBlock<P> cached_keys(const AttentionArgs& a, AttentionTile<P>& t, int64_t j) {
  constexpr bool kOwn = std::is_same<typename P::Element, E>::value;
  const int64_t width = cache_width(a.D), half = kAttentionBlock * width, slot = t.shared ? j : 0;
  const E* const keys = cache_block<E>(a, t.b, t.g, j);
  AttentionBlock<P> block{};
  block.width = kCachePanel;
  block.depth = t.depth;
  if constexpr (sizeof(E) == 1) {
    block.k_scale = reinterpret_cast<const float*>(keys + 2 * half);
    block.v_scale = block.k_scale + kAttentionBlock;
  }
  if (!kOwn && cache_direct<P>(t)) return block;
  auto* const k = t.k + slot * kAttentionBlock * t.depth;
  auto* const v = t.v + slot * kAttentionBlock * t.columns;
  const bool in_place = kOwn && width % P::kUnit == 0;
  if (!in_place && j >= t.packed)
    for (int64_t c = 0; c < kAttentionBlock; c += kCachePanel)
      cache_unpack<P>(k + c * t.depth, kCachePanel, keys + c * width, kCachePanel,
                      width < t.depth ? width : t.depth, t.depth);
  block.k = k;
  if constexpr (kOwn) {
    block.v = keys + half;
    block.v_stride = width * P::kPair;
    if (in_place) {
      block.k = keys;
      block.depth = width;
    }
  } else {
    if (j >= t.packed) cache_unpack<P>(v, t.columns, keys + half, width, kAttentionBlock, kAttentionBlock);
    block.v = v;
    block.v_stride = t.columns * P::kPair;
  }
  if (t.shared && !in_place && j >= t.packed) t.packed = j + 1;
  return block;
}

// The keys and values of a cache; see StridedKeys for the names.
struct CachedKeys {
  template <class P>
  static LLMCLI_INLINE AttentionBlock<P> block(const AttentionArgs& a, AttentionTile<P>& t, int64_t j) {
    if constexpr (P::kPair == 2)
      return a.cache_type == CacheType::bf16 ? cached_keys<P, bf16>(a, t, j)
                                             : cached_keys<P, int8_t>(a, t, j);
    else
      return cache_switch(
          a.cache_type, [&](auto* e) { return cached_keys<P, std::remove_pointer_t<decltype(e)>>(a, t, j); });
  }
  // Calls f for what must be converted where it lies.
  template <class P, class Call>
  static LLMCLI_INLINE void direct(const AttentionArgs& a, const Call& f) {
    if constexpr (P::kPair == 2)
      f(static_cast<int8_t*>(nullptr));
    else
      cache_switch(a.cache_type, [&](auto* e) LLMCLI_INLINE_BODY {
        if constexpr (!std::is_same<decltype(e), float*>::value) f(e);
      });
  }
  // Starts loading values: memory would stand still while the weights are made.
  template <class P>
  static LLMCLI_INLINE void fetch(const AttentionArgs& a, const AttentionTile<P>& t, int64_t j) {
    if (t.shared) return;
    const int64_t half = cache_bytes(a.cache_type, a.D) / 2, n = half < 4096 ? half : 4096;
    const char* const from = cache_block<char>(a, t.b, t.g, j) + half;
    for (int64_t i = 0; i < n; i += 64) __builtin_prefetch(from + i, 0, 2);
  }
  // Values behind the keys count too: a row that was taken back may hold anything.
  template <class P>
  static LLMCLI_INLINE bool finite(const AttentionArgs& a, const AttentionTile<P>& t, int64_t j,
                                   int64_t begin, int64_t end) {
    if (begin >= end) return true;
    const int64_t width = cache_width(a.D), first = begin / 2 * 2;
    return cache_switch(a.cache_type, [&](auto* e) {
      using E = std::remove_pointer_t<decltype(e)>;
      if constexpr (sizeof(E) == 1)
        return true;
      else
        return all_finite(cache_block<E>(a, t.b, t.g, j) + (kAttentionBlock + first) * width, width,
                          round_up(end, 2) - first, width);
    });
  }
  template <class P>
  static LLMCLI_INLINE const typename P::Element* own(const AttentionTile<P>& t, int64_t j,
                                                      const AttentionBlock<P>& block) {
    auto* const v = t.v + (t.shared ? j : 0) * kAttentionBlock * t.columns;
    if (v != block.v)
      std::memcpy(v, block.v, static_cast<size_t>(kAttentionBlock * t.columns) * sizeof(typename P::Element));
    return v;
  }
};

// One position of one head as the cache holds it, `row`; its scale.
template <typename T, typename E>
LLMCLI_INLINE float cache_convert(const T* from, E* row, int64_t n) {
  if constexpr (std::is_same<T, E>::value) {
    std::memcpy(row, from, static_cast<size_t>(n) * sizeof(E));
  } else if constexpr (sizeof(E) > 1) {
    for (int64_t i = 0; i < n; i += N) store_n(row + i, load_n(from + i, n - i), n - i);
  } else {
    int32_t sum;
    return row_to_bytes(from, n, row, &sum);
  }
  return 1.0f;
}

template <typename T, typename E>
void cache_store_head(const AttentionArgs& a, int64_t b, int64_t g, int64_t from, int64_t to) {
  constexpr int64_t kPair = kCachePair<E>, kAhead = 8;
  const int64_t width = cache_width(a.D), half = kAttentionBlock * width;
  const int64_t first = (a.k_lengths ? a.k_lengths[b] : a.S) - a.T;
  const T* const k = static_cast<const T*>(a.k) + b * a.k_b + g * a.k_g;
  const T* const v = static_cast<const T*>(a.v) + b * a.v_b + g * a.v_g;
  alignas(64) E row[256] = {};
  for (int64_t s = from > first ? from : first; s < to && s < first + a.T; ++s) {
    E* const keys = const_cast<E*>(cache_block<E>(a, b, g, s / kAttentionBlock));
    E* const values = keys + half;
    const int64_t slot = s % kAttentionBlock, t = s - first;
    float* const scales = reinterpret_cast<float*>(values + half) + slot;
    // Rows of a prompt lie further apart than the hardware looks ahead.
    for (int64_t d = 0; t + kAhead < a.T && d < a.D; d += 64 / static_cast<int64_t>(sizeof(T))) {
      __builtin_prefetch(k + (t + kAhead) * a.k_s + d, 0, 3);
      __builtin_prefetch(v + (t + kAhead) * a.v_s + d, 0, 3);
    }
    const float k_scale = cache_convert(k + t * a.k_s, row, a.D);
    E* const column = keys + slot / kCachePanel * kCachePanel * width + slot % kCachePanel * kPair;
    for (int64_t d = 0; d < a.D; d += kPair)
      std::memcpy(column + d * kCachePanel, row + d, static_cast<size_t>(kPair) * sizeof(E));
    const float v_scale = cache_convert(v + t * a.v_s, row, a.D);
    E* const place = values + slot / kPair * kPair * width + slot % kPair;
    for (int64_t d = 0; d < a.D; ++d) place[d * kPair] = row[d];
    if constexpr (sizeof(E) == 1) {
      scales[0] = k_scale;
      scales[kAttentionBlock] = v_scale;
    }
  }
}

template <typename T>
LLMCLI_INLINE void cache_store_items(const AttentionArgs& a, int64_t begin, int64_t end, int64_t from,
                                     int64_t to) {
  for (int64_t item = begin; item < end; ++item)
    cache_switch(a.cache_type, [&](auto* e) {
      cache_store_head<T, std::remove_pointer_t<decltype(e)>>(a, item / a.G, item % a.G, from, to);
    });
}

inline void cache_store(const AttentionArgs& a, int64_t begin, int64_t end, int64_t from, int64_t to) {
  switch (a.dtype) {
    case DType::f32:
      return cache_store_items<float>(a, begin, end, from, to);
    case DType::bf16:
      return cache_store_items<bf16>(a, begin, end, from, to);
    case DType::f16:
      return cache_store_items<f16>(a, begin, end, from, to);
  }
}

}  // namespace llmcli::cpu::LLMCLI_ISA
