// Matrix tiles as the CPU has them (AMX). tiles_emulated.h holds the same names for CPUs without.
// The instructions are volatile to the compiler but, loads above all, do not tell it what memory they touch:
// tile_fence() stands between them and ordinary loads and stores.
#pragma once
#include "tile_shapes.h"

namespace llmcli::cpu::LLMCLI_ISA {

LLMCLI_INLINE void tile_fence() { asm volatile("" : : : "memory"); }

LLMCLI_INLINE void tile_configure(const TileShapes& shapes) {
  // GCC 12 believes that the instruction reads 8 bytes; without this the others may never be written.
  asm volatile("" : : "r"(&shapes) : "memory");
  _tile_loadconfig(&shapes);
}
// Leaves the tiles in their initial state, which a context switch need not save.
LLMCLI_INLINE void tile_release() { _tile_release(); }

}  // namespace llmcli::cpu::LLMCLI_ISA

// Tiles are named by a digit; strides are in bytes.
#define LLMCLI_TILE_ZERO(tile) _tile_zero(tile)
#define LLMCLI_TILE_LOAD(tile, from, stride) _tile_loadd(tile, from, stride)
#define LLMCLI_TILE_STORE(tile, to, stride) _tile_stored(tile, to, stride)
// sum (rows x 16 floats) += a (rows x 16 pairs) * b (16 pairs of depths x 16 columns)
#define LLMCLI_TILE_MULTIPLY_BF16(sum, a, b) _tile_dpbf16ps(sum, a, b)
// sum (rows x 16 integers) += a (rows x quads of signed bytes) * b (quads of unsigned bytes x 16 columns)
#define LLMCLI_TILE_MULTIPLY_BYTES(sum, a, b) _tile_dpbsud(sum, a, b)
