// The Product of bfloat16 operands (see tile.h) on matrix tiles: 16 rows x 32 depths times 32 depths x 16
// columns in one instruction, in the packed layouts of tile_bf16.h with depths padded to 32.
//
// An element of C sums chunks of 32 depths in ascending order from zero; within a chunk, even and odd depths
// are a chain each (Intel SDM, TDPBF16PS). Zeros behind the depths change nothing, nor do other rows: only
// tiles multiply bfloat16 here, whatever the number of rows, because AVX512-BF16 sums in another order.
//
// Limit by arithmetic: an instruction takes 16 cycles for 16,384 operations, a tile's load 8, its store 16.
// Per chunk, one tile of rows against four of columns loads five tiles (40 cycles) and multiplies four (64).
#pragma once

namespace llmcli::cpu::LLMCLI_ISA {

constexpr int kChunk = 32;  // depths of one instruction

// Holds the tiles of this thread, from the first shape on; gives them back.
class TileSession {
 public:
  TileSession() = default;
  ~TileSession() {
    if (rows_) tile_release();
  }
  TileSession(const TileSession&) = delete;
  TileSession& operator=(const TileSession&) = delete;

  // `rows` in results and left operands, `depth`, which stays, in the others. Loses what the tiles hold.
  void shape(int64_t rows, int64_t depth = 16) {
    if (rows == rows_) return;
    const TileShapes shapes(rows, depth);
    tile_configure(shapes);
    rows_ = rows;
  }

 private:
  int64_t rows_ = 0;
};
struct WholeTiles : TileSession {
  WholeTiles() { shape(16); }
};

// Tiles 0 to kVectors - 1 += a chunk of a * b; strides in elements.
template <int kVectors>
LLMCLI_INLINE void tile_chunk(const bf16* a, int64_t a_stride, const bf16* b, int64_t b_stride) {
  LLMCLI_TILE_LOAD(4, a, a_stride * 2);
  LLMCLI_TILE_LOAD(5, b, b_stride * 2);
  LLMCLI_TILE_MULTIPLY_BF16(0, 4, 5);
  if constexpr (kVectors > 1) {
    LLMCLI_TILE_LOAD(6, b + 32, b_stride * 2);
    LLMCLI_TILE_MULTIPLY_BF16(1, 4, 6);
  }
  if constexpr (kVectors > 2) {
    LLMCLI_TILE_LOAD(7, b + 64, b_stride * 2);
    LLMCLI_TILE_MULTIPLY_BF16(2, 4, 7);
  }
  if constexpr (kVectors > 3) {
    LLMCLI_TILE_LOAD(5, b + 96, b_stride * 2);
    LLMCLI_TILE_MULTIPLY_BF16(3, 4, 5);
  }
}

LLMCLI_INLINE void tile_clear() {
  LLMCLI_TILE_ZERO(0);
  LLMCLI_TILE_ZERO(1);
  LLMCLI_TILE_ZERO(2);
  LLMCLI_TILE_ZERO(3);
}

template <int kVectors, typename T>
LLMCLI_INLINE void tile_write(T* to, int64_t stride) {
  LLMCLI_TILE_STORE(0, to, stride * 4);
  if constexpr (kVectors > 1) LLMCLI_TILE_STORE(1, to + 16, stride * 4);
  if constexpr (kVectors > 2) LLMCLI_TILE_STORE(2, to + 32, stride * 4);
  if constexpr (kVectors > 3) LLMCLI_TILE_STORE(3, to + 48, stride * 4);
}

struct TileProduct : BFloat16Product {
  static constexpr int kUnit = kChunk, kRows = 16;
  static constexpr int64_t kMostDepths = 256;  // of any product: D, keys of a block, rows of a tile
  using Session = WholeTiles;

  static LLMCLI_INLINE void clear_after(bf16* packed, int64_t columns, int64_t n) {
    BFloat16Product::clear_after(packed, columns, n);
    const int64_t pair = (n + 1) / 2, end = round_up(n, kUnit) / 2;
    std::memset(packed + pair * columns * 2, 0,
                static_cast<size_t>((end - pair) * columns * 2) * sizeof(bf16));
  }
  static LLMCLI_INLINE void pack_depths(bf16* to, int64_t columns, const bf16* from, int64_t stride,
                                        int64_t depth, int64_t n) {
    BFloat16Product::pack_depths(to, columns, from, stride, depth, n);
    clear_after(to, columns, depth);
  }

  template <int kVectors>
  static void multiply(const bf16* a, int64_t a_stride, const bf16* b, int64_t b_stride, int64_t chunks,
                       float* to, int64_t to_stride) {
    tile_fence();
    tile_clear();
    for (int64_t k = 0; k < chunks; ++k)
      tile_chunk<kVectors>(a + k * kChunk, a_stride, b + k * (kChunk / 2) * b_stride, b_stride);
    tile_write<kVectors>(to, to_stride);
    tile_fence();
  }
  // 16 rows x at most four vectors.
  static void multiply(int64_t vectors, const bf16* a, int64_t a_stride, const bf16* b, int64_t b_stride,
                       int64_t chunks, float* to, int64_t to_stride) {
    switch (vectors) {
      case 1:
        return multiply<1>(a, a_stride, b, b_stride, chunks, to, to_stride);
      case 2:
        return multiply<2>(a, a_stride, b, b_stride, chunks, to, to_stride);
      case 3:
        return multiply<3>(a, a_stride, b, b_stride, chunks, to, to_stride);
      default:
        return multiply<4>(a, a_stride, b, b_stride, chunks, to, to_stride);
    }
  }

  // See tile() in tile.h. Fewer than 16 rows are copied, so that nothing behind them is read.
  template <class Take>
  static LLMCLI_INLINE void tile(int64_t rows, const bf16* a, int64_t a_stride, const bf16* b,
                                 int64_t b_stride, int64_t vectors, int64_t steps, const Take& take) {
    alignas(64) bf16 few[kRows * kMostDepths];
    alignas(64) float c[kRows * kPanel];
    const int64_t chunks = (steps * kPair + kChunk - 1) / kChunk, depth = chunks * kChunk;
    if (rows < kRows) {
      for (int64_t i = 0; i < rows; ++i)
        std::memcpy(few + i * depth, a + i * a_stride, static_cast<size_t>(depth) * sizeof(bf16));
      a = few;
      a_stride = depth;
    }
    for (int64_t v = 0; v < vectors; v += kTileVectors) {
      const int64_t n = vectors - v < kTileVectors ? vectors - v : kTileVectors;
      multiply(n, a, a_stride, b + v * N * kPair, b_stride, chunks, c, kPanel);
      for (int64_t i = 0; i < rows; ++i)
        for (int64_t u = 0; u < n; ++u) take(i, v + u, LLMCLI_ISA::load(c + i * kPanel + u * N));
    }
  }
  static LLMCLI_INLINE void store_tile(int64_t rows, const bf16* a, int64_t a_stride, const bf16* b,
                                       int64_t b_stride, int64_t vectors, int64_t steps, float* to,
                                       int64_t to_stride) {
    if (rows < kRows)
      return tile(rows, a, a_stride, b, b_stride, vectors, steps,
                  [&](int64_t i, int64_t u, F sum)
                      LLMCLI_INLINE_BODY { LLMCLI_ISA::store(to + i * to_stride + u * N, sum); });
    const int64_t chunks = (steps * kPair + kChunk - 1) / kChunk;
    for (int64_t v = 0; v < vectors; v += kTileVectors)
      multiply(vectors - v < kTileVectors ? vectors - v : kTileVectors, a, a_stride, b + v * N * kPair,
               b_stride, chunks, to + v * N, to_stride);
  }
};

template <>
struct ProductOf<bf16> {
  using type = TileProduct;
};

}  // namespace llmcli::cpu::LLMCLI_ISA
