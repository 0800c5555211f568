// Rows of ggml's blocks packed for linear_quantized.h, number for number: a block of 32 weights is a float16
// scale and 32 signed bytes (Q8_0), or 16 bytes that hold input i below and input 16 + i above, plus 8
// (Q4_0). Traffic: every block is read once and written once. The rows of a panel are too many streams for
// the hardware's prefetcher, so each block asks for the one in its place in the next panel.
#pragma once

namespace llmcli::cpu::LLMCLI_ISA {

// The eight loads of a column of Q8_0, 128 added to each byte.
LLMCLI_INLINE void block_loads(const uint8_t* block, uint32_t (&loads)[8]) {
  std::memcpy(loads, block + 2, 32);
  for (uint32_t& quad : loads) quad ^= 0x80808080u;
}

// The four of Q4_0.
LLMCLI_INLINE void block_loads(const uint8_t* block, uint32_t (&loads)[4]) {
  constexpr uint32_t kLow = 0x0f0f0f0fu;
  uint32_t bytes[4];
  std::memcpy(bytes, block + 2, 16);
  for (int i = 0; i < 2; ++i) {
    const uint32_t first = bytes[2 * i], second = bytes[2 * i + 1];
    loads[i] = (first & kLow) | (second & kLow) << 4;
    loads[2 + i] = (first >> 4 & kLow) | (second & ~kLow);
  }
}

template <int kBits>
void blocks_pack_panel(const BlocksPackArgs& a, int64_t panel) {
  constexpr int64_t kLoads = kBits, kBlock = 2 + 4 * kLoads;
  const int64_t columns = a.outputs - panel * kQuantizedPanel < kQuantizedPanel
                              ? a.outputs - panel * kQuantizedPanel
                              : kQuantizedPanel;
  const int64_t* const rows = a.rows + panel * kQuantizedPanel;
  const int64_t ahead = (panel + 2) * kQuantizedPanel <= a.outputs ? kQuantizedPanel : 0;
  uint8_t* to = a.packed + panel * quantized_panel_bytes(a.inputs, kBits, true);
  uint32_t turned[kQuantizedPanel][kLoads];
  for (int64_t g = 0; g < a.inputs / 32; ++g) {
    for (int64_t c = 0; c < columns; ++c) {
      const uint8_t* const block = a.data + rows[c] + g * kBlock;
      __builtin_prefetch(a.data + rows[c + ahead] + g * kBlock, 0, 2);
      std::memcpy(to + 2 * c, block, 2);
      uint32_t loads[kLoads];
      block_loads(block, loads);
      std::memcpy(turned[c], loads, sizeof(loads));
    }
    if (columns < kQuantizedPanel) {
      std::memset(to + 2 * columns, 0, static_cast<size_t>(2 * (kQuantizedPanel - columns)));
      std::memset(turned[columns], kBits == 8 ? 0x80 : 0x88,
                  static_cast<size_t>(kQuantizedPanel - columns) * sizeof(turned[0]));
    }
    for (int64_t s = 0; s < kLoads; ++s)
      for (int64_t c = 0; c < kQuantizedPanel; ++c)
        std::memcpy(to + 2 * kQuantizedPanel + 4 * (s * kQuantizedPanel + c), &turned[c][s], 4);
    to += kQuantizedPanel * kBlock;
  }
}

inline void linear_blocks_pack(const BlocksPackArgs& a, int64_t begin, int64_t end) {
  for (int64_t panel = begin; panel < end; ++panel)
    a.bits == 8 ? blocks_pack_panel<8>(a, panel) : blocks_pack_panel<4>(a, panel);
}

}  // namespace llmcli::cpu::LLMCLI_ISA
