// The bfloat16 linear layer (see linear.h) on matrix tiles, from the same packed weights.
// Order: an output element sums chunks of 32 inputs in ascending order, each as tile_amx.h says. It depends
// on K alone: zeros fill the last chunk, and tiles multiply one row as they multiply 16.
//
// Limit by arithmetic, per chunk: 32 rows x 32 columns load four tiles (4 KiB, 32 cycles from L1) for four
// products (64 cycles), so that the multiplier waits only where L2 gives less than 64 bytes a cycle; the
// rest of a block, 16 rows or fewer, loads five for four. One row streams 4 KiB of weights in 64 cycles, more
// than memory gives.
#pragma once

namespace llmcli::cpu::LLMCLI_ISA {

// One panel against one block of rows; the last chunk of odd lengths is a copy with zeros behind.
struct LinearTiles {
  const bf16 *x, *w;  // of the block, of the panel
  int64_t x_stride, chunks;
  bool rest;  // K is not a multiple of kChunk
  alignas(64) bf16 x_rest[kLinearRows * kChunk];
  alignas(64) bf16 w_rest[kLinearPanel * kChunk];

  static constexpr int64_t kStep = 2 * kLinearPanel;  // elements of w from pair to pair

  LinearTiles(const LinearArgs& a, int64_t panel, int64_t row, int64_t rows) {
    x = static_cast<const bf16*>(a.x) + row * a.x_stride;
    w = static_cast<const bf16*>(a.w) + panel * ((a.inputs + 1) / 2) * kStep;
    x_stride = a.x_stride;
    chunks = a.inputs / kChunk;
    const int64_t done = chunks * kChunk, left = a.inputs - done;
    rest = left > 0;
    if (!rest) return;
    std::memset(x_rest, 0, sizeof(x_rest));
    std::memset(w_rest, 0, sizeof(w_rest));
    for (int64_t r = 0; r < rows; ++r)
      std::memcpy(x_rest + r * kChunk, x + r * x_stride + done, static_cast<size_t>(left) * sizeof(bf16));
    std::memcpy(w_rest, w + done * kLinearPanel, static_cast<size_t>((left + 1) / 2 * kStep) * sizeof(bf16));
  }

  // sums (up to 16 x kLinearPanel) of rows from `row` on.
  void strip(int64_t row, float* sums) const {
    tile_fence();
    tile_clear();
    for (int64_t k = 0; k < chunks; ++k)
      tile_chunk<4>(x + row * x_stride + k * kChunk, x_stride, w + k * kChunk * kLinearPanel, kStep);
    if (rest) tile_chunk<4>(x_rest + row * kChunk, kChunk, w_rest, kStep);
    tile_write<4>(sums, kLinearPanel);
    tile_fence();
  }

  // sums (32 x 32, rows kLinearPanel apart) of rows from `row` and columns from `column` on: tiles 0 and 1
  // above 2 and 3.
  void square(int64_t row, int64_t column, float* sums) const {
    tile_fence();
    tile_clear();
    for (int64_t k = 0; k < chunks; ++k)
      square_chunk(x + row * x_stride + k * kChunk, x_stride, w + k * kChunk * kLinearPanel + 2 * column);
    if (rest) square_chunk(x_rest + row * kChunk, kChunk, w_rest + 2 * column);
    LLMCLI_TILE_STORE(0, sums, kLinearPanel * 4);
    LLMCLI_TILE_STORE(1, sums + 16, kLinearPanel * 4);
    LLMCLI_TILE_STORE(2, sums + 16 * kLinearPanel, kLinearPanel * 4);
    LLMCLI_TILE_STORE(3, sums + 16 * kLinearPanel + 16, kLinearPanel * 4);
    tile_fence();
  }
  static LLMCLI_INLINE void square_chunk(const bf16* a, int64_t a_stride, const bf16* b) {
    LLMCLI_TILE_LOAD(4, a, a_stride * 2);
    LLMCLI_TILE_LOAD(6, b, kStep * 2);
    LLMCLI_TILE_MULTIPLY_BF16(0, 4, 6);
    LLMCLI_TILE_LOAD(7, b + 32, kStep * 2);
    LLMCLI_TILE_MULTIPLY_BF16(1, 4, 7);
    LLMCLI_TILE_LOAD(5, a + 16 * a_stride, a_stride * 2);
    LLMCLI_TILE_MULTIPLY_BF16(2, 5, 6);
    LLMCLI_TILE_MULTIPLY_BF16(3, 5, 7);
  }
};

inline void linear_tiles(const LinearArgs& a, int64_t begin, int64_t end) {
  TileSession session;
  alignas(64) float sums[2 * TileProduct::kRows * kLinearPanel];
  const int64_t blocks = (a.rows + kLinearRows - 1) / kLinearRows;
  for (int64_t item = begin; item < end; ++item) {
    const int64_t panel = item / blocks, first = item % blocks * kLinearRows;
    const int64_t rows = a.rows - first < kLinearRows ? a.rows - first : kLinearRows;
    const int64_t column = panel * kLinearPanel;
    const int64_t columns = a.outputs - column < kLinearPanel ? a.outputs - column : kLinearPanel;
    const bf16* bias = a.bias ? static_cast<const bf16*>(a.bias) + column : nullptr;
    const LinearTiles tiles(a, panel, first, rows);
    for (int64_t row = 0; row < rows;) {
      const int64_t left = rows - row, n = left >= 32 ? 32 : left >= 16 ? 16 : left;
      session.shape(n < 16 ? n : 16);
      if (n == 32) {
        tiles.square(row, 0, sums);
        tiles.square(row, 32, sums + 32);
      } else {
        tiles.strip(row, sums);
      }
      for (int64_t r = 0; r < n; ++r)
        linear_store(a, sums + r * kLinearPanel, bias, columns, (first + row + r) * a.y_stride + column);
      row += n;
    }
  }
}

}  // namespace llmcli::cpu::LLMCLI_ISA
