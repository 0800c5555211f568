// Matrix tiles in AVX-512, so that the kernels of tile_amx.h, linear_amx.h and linear_quantized_amx.h run,
// and are tested, on CPUs without AMX. Semantics after the Intel SDM, volume 2, TDPBF16PS, TDPBSUD,
// TILELOADD, TILESTORED, LDTILECFG: an instruction that would fault traps here.
#pragma once
#include "tile_shapes.h"

namespace llmcli::cpu::LLMCLI_ISA {

struct TileState {
  bool configured = false;
  uint8_t rows[8], row_bytes[8];
  alignas(64) uint32_t data[8][16][16];
};
inline thread_local TileState tile_state;

LLMCLI_INLINE void tile_fence() { asm volatile("" : : : "memory"); }

inline void tile_check(bool allowed) {
  if (!allowed) __builtin_trap();
}
inline void tile_configure(const TileShapes& shapes) {
  tile_check(shapes.palette == 1 && shapes.start_row == 0);
  tile_state = {};
  tile_state.configured = true;
  for (int i = 0; i < 8; ++i) {
    tile_check(shapes.row_bytes[i] >= 1 && shapes.row_bytes[i] <= 64);
    tile_check(shapes.rows[i] >= 1 && shapes.rows[i] <= 16);
    tile_state.rows[i] = shapes.rows[i];
    tile_state.row_bytes[i] = static_cast<uint8_t>(shapes.row_bytes[i]);
  }
}
inline void tile_release() { tile_state.configured = false; }

inline void tile_zero(int tile) {
  tile_check(tile_state.configured);
  std::memset(tile_state.data[tile], 0, sizeof(tile_state.data[tile]));
}
inline void tile_load(int tile, const void* from, int64_t stride) {
  tile_zero(tile);
  for (int r = 0; r < tile_state.rows[tile]; ++r)
    std::memcpy(tile_state.data[tile][r], static_cast<const char*>(from) + r * stride,
                tile_state.row_bytes[tile]);
}
inline void tile_store(int tile, void* to, int64_t stride) {
  tile_check(tile_state.configured);
  for (int r = 0; r < tile_state.rows[tile]; ++r)
    std::memcpy(static_cast<char*>(to) + r * stride, tile_state.data[tile][r], tile_state.row_bytes[tile]);
}
inline void tile_check_product(int sum, int a, int b) {
  const TileState& t = tile_state;
  tile_check(t.configured && sum != a && sum != b && a != b);
  tile_check(t.rows[sum] == t.rows[a] && t.row_bytes[a] == 4 * t.rows[b] &&
             t.row_bytes[sum] == t.row_bytes[b]);
}
// Even and odd depths are a chain of fused multiply-adds each, from zero; their sum is added to the result.
// Rounded to nearest even, subnormals are zero on the way in and out.
inline void tile_multiply_bf16(int sum, int a, int b) {
  tile_check_product(sum, a, b);
  const unsigned before = _mm_getcsr();
  _mm_setcsr(0x9fc0);  // masked exceptions, flush to zero, subnormals are zero, nearest even
  tile_fence();
  const __m512i high = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
  for (int r = 0; r < tile_state.rows[sum]; ++r) {
    F even = zero(), odd = zero();
    for (int k = 0; k < tile_state.rows[b]; ++k) {
      const __m512i x = _mm512_set1_epi32(static_cast<int>(tile_state.data[a][r][k]));
      const __m512i y = _mm512_load_si512(tile_state.data[b][k]);
      even = fma(_mm512_castsi512_ps(_mm512_slli_epi32(x, 16)), _mm512_castsi512_ps(_mm512_slli_epi32(y, 16)),
                 even);
      odd = fma(_mm512_castsi512_ps(_mm512_and_si512(x, high)),
                _mm512_castsi512_ps(_mm512_and_si512(y, high)), odd);
    }
    float* to = reinterpret_cast<float*>(tile_state.data[sum][r]);
    store(to, add(load(to), add(even, odd)));
  }
  tile_fence();
  _mm_setcsr(before);
}
// Integers, exactly.
inline void tile_multiply_bytes(int sum, int a, int b) {
  tile_check_product(sum, a, b);
  for (int r = 0; r < tile_state.rows[sum]; ++r) {
    I total = load_int(tile_state.data[sum][r]);
    for (int k = 0; k < tile_state.rows[b]; ++k)
      total = dot_bytes<8>(total, load_int(tile_state.data[b][k]),
                           set_int(static_cast<int32_t>(tile_state.data[a][r][k])));
    std::memcpy(tile_state.data[sum][r], &total, 64);
  }
}

}  // namespace llmcli::cpu::LLMCLI_ISA

#define LLMCLI_TILE_ZERO(tile) tile_zero(tile)
#define LLMCLI_TILE_LOAD(tile, from, stride) tile_load(tile, from, stride)
#define LLMCLI_TILE_STORE(tile, to, stride) tile_store(tile, to, stride)
#define LLMCLI_TILE_MULTIPLY_BF16(sum, a, b) tile_multiply_bf16(sum, a, b)
#define LLMCLI_TILE_MULTIPLY_BYTES(sum, a, b) tile_multiply_bytes(sum, a, b)
