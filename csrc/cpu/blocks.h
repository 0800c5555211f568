// ggml's blocks of 32 or 256 weights with their scales, unpacked to numbers with the bits of ggml's reference
// (ggml-quants.c): a weight is scale * q, or scale * q + shift, each rounded to float32, then to T.
// Traffic: blocks are read once and numbers written once.
#pragma once
#include "vec_loop.h"

namespace llmcli::cpu::LLMCLI_ISA {

// What a block holds: whole numbers, and a scale and a shift for every `group` of them.
struct Unpacked {
  int8_t q[256];
  float scale[16], shift[16];
};

LLMCLI_INLINE float half_at(const uint8_t* p) {
  f16 x;
  std::memcpy(&x, p, 2);
  return to_float(x);
}

// n bytes: their low halves, then their high ones, each times 1, less `offset`.
LLMCLI_INLINE void unpack_nibbles(const uint8_t* p, int n, int offset, int8_t* q) {
  for (int i = 0; i < n; ++i) {
    q[i] = static_cast<int8_t>((p[i] & 15) - offset);
    q[i + n] = static_cast<int8_t>((p[i] >> 4) - offset);
  }
}
// Adds 16 for every bit that is set of the 32 at `p`.
LLMCLI_INLINE void unpack_fifth_bits(const uint8_t* p, int8_t* q) {
  uint32_t bits;
  std::memcpy(&bits, p, 4);
  for (uint32_t i = 0; i < 32; ++i) q[i] = static_cast<int8_t>(q[i] + static_cast<int>((bits >> i & 1) << 4));
}
// Scales and shifts of the eight groups of a Q4_K or Q5_K block: six bits each, times a float16.
LLMCLI_INLINE void unpack_scales(const uint8_t* p, Unpacked* to) {
  const float d = half_at(p), m = half_at(p + 2);
  const uint8_t *low = p + 4, *offset = p + 8, *rest = p + 12;
  for (int i = 0; i < 4; ++i) {
    to->scale[i] = d * static_cast<float>(low[i] & 63);
    to->shift[i] = -(m * static_cast<float>(offset[i] & 63));
    to->scale[i + 4] = d * static_cast<float>((rest[i] & 15) | (low[i] >> 2 & 48));
    to->shift[i + 4] = -(m * static_cast<float>(rest[i] >> 4 | (offset[i] >> 2 & 48)));
  }
}

// `kind` as a type: how many weights, bytes and weights of a group, whether there are shifts, and the
// unpacking.
template <BlockKind kKind>
struct Block;
template <>
struct Block<BlockKind::q4_0> {
  static constexpr int kWeights = 32, kGroup = 32;
  static constexpr bool kShift = false;
  static LLMCLI_INLINE void unpack(const uint8_t* p, Unpacked* to) {
    to->scale[0] = half_at(p);
    unpack_nibbles(p + 2, 16, 8, to->q);
  }
};
template <>
struct Block<BlockKind::q4_1> {
  static constexpr int kWeights = 32, kGroup = 32;
  static constexpr bool kShift = true;
  static LLMCLI_INLINE void unpack(const uint8_t* p, Unpacked* to) {
    to->scale[0] = half_at(p);
    to->shift[0] = half_at(p + 2);
    unpack_nibbles(p + 4, 16, 0, to->q);
  }
};
template <>
struct Block<BlockKind::q5_0> {
  static constexpr int kWeights = 32, kGroup = 32;
  static constexpr bool kShift = false;
  static LLMCLI_INLINE void unpack(const uint8_t* p, Unpacked* to) {
    to->scale[0] = half_at(p);
    unpack_nibbles(p + 6, 16, 16, to->q);
    unpack_fifth_bits(p + 2, to->q);
  }
};
template <>
struct Block<BlockKind::q5_1> {
  static constexpr int kWeights = 32, kGroup = 32;
  static constexpr bool kShift = true;
  static LLMCLI_INLINE void unpack(const uint8_t* p, Unpacked* to) {
    to->scale[0] = half_at(p);
    to->shift[0] = half_at(p + 2);
    unpack_nibbles(p + 8, 16, 0, to->q);
    unpack_fifth_bits(p + 4, to->q);
  }
};
template <>
struct Block<BlockKind::q8_0> {
  static constexpr int kWeights = 32, kGroup = 32;
  static constexpr bool kShift = false;
  static LLMCLI_INLINE void unpack(const uint8_t* p, Unpacked* to) {
    to->scale[0] = half_at(p);
    std::memcpy(to->q, p + 2, 32);
  }
};
template <>
struct Block<BlockKind::q4_k> {
  static constexpr int kWeights = 256, kGroup = 32;
  static constexpr bool kShift = true;
  static LLMCLI_INLINE void unpack(const uint8_t* p, Unpacked* to) {
    unpack_scales(p, to);
    for (int c = 0; c < 4; ++c) unpack_nibbles(p + 16 + 32 * c, 32, 0, to->q + 64 * c);
  }
};
template <>
struct Block<BlockKind::q5_k> {
  static constexpr int kWeights = 256, kGroup = 32;
  static constexpr bool kShift = true;
  static LLMCLI_INLINE void unpack(const uint8_t* p, Unpacked* to) {
    unpack_scales(p, to);
    for (int c = 0; c < 4; ++c) unpack_nibbles(p + 48 + 32 * c, 32, 0, to->q + 64 * c);
    for (int g = 0; g < 8; ++g)
      for (int i = 0; i < 32; ++i)
        to->q[32 * g + i] = static_cast<int8_t>(to->q[32 * g + i] | (p[16 + i] >> g & 1) << 4);
  }
};
template <>
struct Block<BlockKind::q6_k> {
  static constexpr int kWeights = 256, kGroup = 16;
  static constexpr bool kShift = false;
  static LLMCLI_INLINE void unpack(const uint8_t* p, Unpacked* to) {
    const float d = half_at(p + 208);
    for (int g = 0; g < 16; ++g) to->scale[g] = d * static_cast<float>(static_cast<int8_t>(p[192 + g]));
    for (int h = 0; h < 2; ++h) {
      int8_t* const q = to->q + 128 * h;
      unpack_nibbles(p + 64 * h, 64, 0, q);
      for (int s = 0; s < 4; ++s)
        for (int i = 0; i < 32; ++i)
          q[32 * s + i] = static_cast<int8_t>((q[32 * s + i] | (p[128 + 32 * h + i] >> 2 * s & 3) << 4) - 32);
    }
  }
};

template <BlockKind kKind, typename T>
void blocks_unpack_range(const BlocksArgs& a, int64_t begin, int64_t end) {
  using B = Block<kKind>;
  Unpacked block;
  for (int64_t item = begin; item < end; ++item) {
    const int64_t stop = (item + 1) * kBlocksTogether < a.blocks ? (item + 1) * kBlocksTogether : a.blocks;
    for (int64_t n = item * kBlocksTogether; n < stop; ++n) {
      B::unpack(a.data + n * block_bytes(kKind), &block);
      T* const to = static_cast<T*>(a.y) + n * B::kWeights;
      for (int g = 0; g < B::kWeights / B::kGroup; ++g)
        for (int i = g * B::kGroup; i < (g + 1) * B::kGroup; i += N) {
          const F y = mul(set(block.scale[g]), load(block.q + i));
          store(to + i, B::kShift ? add(y, set(block.shift[g])) : y);
        }
    }
  }
}

template <BlockKind kKind>
void blocks_unpack_kind(const BlocksArgs& a, int64_t begin, int64_t end) {
  switch (a.dtype) {
    case DType::f32:
      return blocks_unpack_range<kKind, float>(a, begin, end);
    case DType::bf16:
      return blocks_unpack_range<kKind, bf16>(a, begin, end);
    case DType::f16:
      return blocks_unpack_range<kKind, f16>(a, begin, end);
  }
}

void blocks_unpack(const BlocksArgs& a, int64_t begin, int64_t end) {
  switch (a.kind) {
    case BlockKind::q4_0:
      return blocks_unpack_kind<BlockKind::q4_0>(a, begin, end);
    case BlockKind::q4_1:
      return blocks_unpack_kind<BlockKind::q4_1>(a, begin, end);
    case BlockKind::q5_0:
      return blocks_unpack_kind<BlockKind::q5_0>(a, begin, end);
    case BlockKind::q5_1:
      return blocks_unpack_kind<BlockKind::q5_1>(a, begin, end);
    case BlockKind::q8_0:
      return blocks_unpack_kind<BlockKind::q8_0>(a, begin, end);
    case BlockKind::q4_k:
      return blocks_unpack_kind<BlockKind::q4_k>(a, begin, end);
    case BlockKind::q5_k:
      return blocks_unpack_kind<BlockKind::q5_k>(a, begin, end);
    case BlockKind::q6_k:
      return blocks_unpack_kind<BlockKind::q6_k>(a, begin, end);
  }
}

}  // namespace llmcli::cpu::LLMCLI_ISA
