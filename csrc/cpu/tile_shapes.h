// The shapes of the eight matrix tiles, as the instruction that sets them reads it (palette 1). Tiles are 16
// rows of 64 bytes whatever they hold: 16 floats, 16 pairs of bfloat16 or 16 quads of bytes.
#pragma once

namespace llmcli::cpu::LLMCLI_ISA {

struct alignas(64) TileShapes {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};

  // Tiles 0 to 3, results, and 4, a left operand, of `first` rows; 5 to 7, right operands, of `depth` rows.
  explicit TileShapes(int64_t first, int64_t depth) {
    for (int i = 0; i < 8; ++i) {
      row_bytes[i] = static_cast<uint16_t>(i == 4 ? 4 * depth : 64);
      rows[i] = static_cast<uint8_t>(i < 5 ? first : depth);
    }
  }
};
static_assert(sizeof(TileShapes) == 64, "the instruction reads 64 bytes");

}  // namespace llmcli::cpu::LLMCLI_ISA
