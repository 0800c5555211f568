// Softmax attention, forward: out = softmax(scale * q k^T + bias) v, tiled, no T x S matrix in memory; with a
// cap, cap * tanh(scale * q k^T / cap) in place of the scaled scores (Gemma 2).
//
// The arithmetic of one query row, which is all that its result depends on:
//   The keys that it sees, [0, n), are cut into blocks of kAttentionBlock, aligned to key 0. Each block gives
//   a partial result of its own: scores (one FMA chain over D per key), their maximum m, weights
//   p = 2^(s - m) in units of log2, their sum l (lane i % N, ascending, then reduce_add), and o, the sum of
//   p v (one FMA chain over the keys). Partials are merged in ascending order of blocks, in float32.
// A block without visible keys, and a hidden key in a block (p = 0), leave every bit as it was; so tiles,
// chunks of queries, batches, threads and splits of the keys over threads cannot be told from the result.
//
// Work: a tile of kAttentionRows rows walks over the blocks; K and V are packed once per head and thread, all
// else stays in cache. Few rows and many keys (decoding): an item is one block, and a second pass merges.
// A cache (attention_cache.h) holds its blocks as the products read them and gives the same bits.
// Traffic: K and V once per tile, so from memory once per group when decoding; q and out once.
#pragma once
#include "attention_tile.h"
#include "attention_cache.h"
#include "attention_block.h"

namespace llmcli::cpu::LLMCLI_ISA {

// Writes out and lse of a tile from its running result.
template <class P, typename T>
void attention_close(const AttentionArgs& a, const AttentionTile<P>& t) {
  for (int64_t r = 0; r < t.rows; ++r) {
    const int64_t row = t.t_of(r), h = t.h_of(r);
    T* out = static_cast<T*>(a.out) + ((t.b * a.T + row) * a.H + h) * a.D;
    const float sum = t.sum[r];
    const bool nothing = sum == 0.0f;
    const F inverse = set(1.0f / sum);
    for (int64_t d = 0; d < a.D; d += N) {
      // Adding zero turns -0 into 0, whichever hidden keys were passed over.
      const F y = nothing ? zero() : fma(load(t.o + r * t.columns + d), inverse, zero());
      if (a.D - d >= N)
        store(out + d, y);
      else
        store_n(out + d, y, a.D - d);
    }
    a.lse[(t.b * a.H + h) * a.T + row] =
        nothing ? -INFINITY
                : static_cast<float>(t.top[r] * kLn2 + logf(sum));  // rounded once, for the backward
  }
}

// Item order: the tiles of a key/value head from both ends, so that contiguous ranges of items cost the same
// although causal tiles grow.
template <class P, typename T, class Keys>
void attention_items(const AttentionArgs& a, int64_t begin, int64_t end, void* scratch) {
  AttentionTile<P> t(a, scratch);
  const int64_t tiles = attention_tiles(a);
  for (int64_t item = begin; item < end; ++item) {
    const int64_t i = item % tiles, pair = item / tiles;
    attention_open<P, T>(a, t, pair / a.G, pair % a.G, i % 2 ? tiles - 1 - i / 2 : i / 2);
    const int64_t blocks = t.blocks();
    t.next_head = t.g;
    for (int64_t j = 0; j < blocks; ++j) {
      t.next_block = j + 1;
      attention_block<P, Keys>(a, t, j);
    }
    attention_close<P, T>(a, t);
  }
}

// Split over blocks, first pass: item ((b * blocks + j) * tiles + tile) * G + g leaves its partial result:
// what the tile's running result is after this block alone. A partial is kAttentionRows maxima, as many sums,
// then o.
template <class P, typename T, class Keys>
void attention_split_items(const AttentionArgs& a, int64_t begin, int64_t end, void* scratch) {
  AttentionTile<P> t(a, scratch);
  const int64_t tiles = attention_tiles(a), blocks = attention_blocks(a);
  for (int64_t item = begin; item < end; ++item) {
    const int64_t g = item % a.G, i = item / a.G % tiles, j = item / a.G / tiles % blocks;
    float* partial = a.partial + item * attention_partial(a);
    t.o = partial + 2 * kAttentionRows;
    attention_open<P, T>(a, t, item / a.G / tiles / blocks, g, i);
    if (j >= t.blocks()) continue;
    t.next_head = g + 1 < a.G ? g + 1 : 0;
    t.next_block = g + 1 < a.G ? j : j + 1;
    attention_block<P, Keys>(a, t, j);
    for (int64_t r = 0; r < t.rows; r += N) {
      store(partial + r, load(t.top + r));
      store(partial + kAttentionRows + r, load(t.sum + r));
    }
  }
}

// Second pass: item (b * G + g) * tiles + tile.
template <class P, typename T>
void attention_merge_items(const AttentionArgs& a, int64_t begin, int64_t end, void* scratch) {
  AttentionTile<P> t(a, scratch);
  const int64_t tiles = attention_tiles(a), blocks = attention_blocks(a);
  for (int64_t item = begin; item < end; ++item) {
    const int64_t i = item % tiles, pair = item / tiles, b = pair / a.G, g = pair % a.G;
    attention_open<P, T>(a, t, b, g, i);
    const int64_t used = t.blocks();
    for (int64_t j = 0; j < used; ++j) {
      const float* partial = a.partial + (((b * blocks + j) * tiles + i) * a.G + g) * attention_partial(a);
      attention_merge_factors(t, partial, partial + kAttentionRows);
      const float* o = partial + 2 * kAttentionRows;
      for (int64_t r = 0; r < t.rows; ++r)
        for (int64_t d = 0; d < t.columns; d += N)
          attention_merge(t.o + r * t.columns + d, load(o + r * t.columns + d), t.keep[r], t.take[r]);
    }
    attention_close<P, T>(a, t);
  }
}

template <class P, typename T, class Keys>
void attention_pass_of(const AttentionArgs& a, AttentionPass pass, int64_t begin, int64_t end,
                       void* scratch) {
  [[maybe_unused]] typename P::Session session;
  switch (pass) {
    case AttentionPass::whole:
      return attention_items<P, T, Keys>(a, begin, end, scratch);
    case AttentionPass::split:
      return attention_split_items<P, T, Keys>(a, begin, end, scratch);
    case AttentionPass::merge:
      return attention_merge_items<P, T>(a, begin, end, scratch);
  }
}

// Whether bfloat16 operands hold queries, keys and values exactly.
inline bool attention_narrow(const AttentionArgs& a) {
  return a.dtype == DType::bf16 &&
         (!a.cache || a.cache_type == CacheType::bf16 || a.cache_type == CacheType::i8);
}

template <typename T>
void attention_pass(const AttentionArgs& a, AttentionPass pass, int64_t begin, int64_t end, void* scratch) {
  using P = typename ProductOf<T>::type;
  if (!a.cache) return attention_pass_of<P, T, StridedKeys<T>>(a, pass, begin, end, scratch);
  if (a.dtype == DType::bf16 && !attention_narrow(a))
    return attention_pass_of<WideProduct, T, CachedKeys>(a, pass, begin, end, scratch);
  attention_pass_of<P, T, CachedKeys>(a, pass, begin, end, scratch);
}

inline void attention(const AttentionArgs& a, AttentionPass pass, int64_t begin, int64_t end, void* scratch) {
  switch (a.dtype) {
    case DType::f32:
      return attention_pass<float>(a, pass, begin, end, scratch);
    case DType::bf16:
      return attention_pass<bf16>(a, pass, begin, end, scratch);
    case DType::f16:
      return attention_pass<f16>(a, pass, begin, end, scratch);
  }
}

inline int64_t attention_scratch(const AttentionArgs& a) {
  return attention_narrow(a) ? AttentionTile<ProductOf<bf16>::type>::bytes(a)
                             : AttentionTile<WideProduct>::bytes(a);
}

}  // namespace llmcli::cpu::LLMCLI_ISA
