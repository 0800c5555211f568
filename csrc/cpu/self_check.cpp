#include <cstring>

#include "kernels.h"

namespace llmcli::cpu {
namespace {

// Two blocks of rows with a short tile at the end, two panels, two chunks of inputs and an odd rest.
constexpr int64_t kRows = 51, kInputs = 71, kOutputs = 70, kPanels = 2;

// A cheap random sequence (Knuth, The Art of Computer Programming, volume 2, 3.3.4).
uint32_t next(uint32_t& state) { return (state = state * 1664525u + 1013904223u) >> 16; }

bf16 from_integer(int i) {  // exact up to 256
  const float x = static_cast<float>(i);
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return {static_cast<uint16_t>(bits >> 16)};
}

struct Product {
  bf16 x[kRows * kInputs], w[kOutputs * kInputs], y[kRows * kOutputs];
  bf16 packed[kPanels * 64 * (kInputs + 1)];

  void run(const Kernels& kernels, int64_t first, int64_t rows) {
    const LinearPackArgs pack{w, packed, kInputs, kOutputs, kInputs, 1, DType::bf16};
    kernels.linear_pack(pack, 0, kPanels);
    const LinearArgs args{x + first * kInputs,
                          packed,
                          nullptr,
                          y + first * kOutputs,
                          rows,
                          kInputs,
                          kOutputs,
                          kInputs,
                          kOutputs,
                          DType::bf16};
    kernels.linear(args, 0, kPanels * ((rows + 47) / 48));
  }
};

// Weights of 8 or 4 bits of any value by whole numbers whose groups have a scale of 1: a group, more than
// half of one, and an odd rest.
bool multiplies_bytes(const Kernels& kernels, int bits, uint32_t& state) {
  constexpr int64_t kBytes = 199, kPadded = 200, kMostGroups = 7;  // of inputs
  float x[kRows * kBytes], y[kRows * kOutputs], scales[kRows * kMostGroups];
  int8_t w[kOutputs * kBytes], q[kRows * kPadded];
  uint8_t nibbles[kOutputs * kPadded / 2] = {}, packed[kPanels * 64 * (kPadded + 2 * kMostGroups)];
  bf16 ones[kOutputs * kMostGroups];
  int32_t starts[kRows * kMostGroups];
  for (bf16& v : ones) v = from_integer(1);
  for (int64_t i = 0; i < kRows * kBytes; ++i)
    x[i] = i % kBytes % quantized_group(bits) == 0
               ? 127.0f
               : static_cast<float>(static_cast<int>(next(state) % 255) - 127);
  for (int64_t i = 0; i < kOutputs * kBytes; ++i) {
    const int u = static_cast<int>(next(state) % (1u << bits)), k = static_cast<int>(i % kBytes);
    w[i] = static_cast<int8_t>(u - (1 << (bits - 1)));
    if (bits == 4) nibbles[i / kBytes * kPadded / 2 + k / 2] |= static_cast<uint8_t>(u << k % 2 * 4);
  }
  const void* const weights = bits == 8 ? static_cast<const void*>(w) : nibbles;
  kernels.linear_quantized_pack({weights, ones, packed, kBytes, kOutputs, bits}, 0, kPanels);
  const QuantizedLinearArgs args{x,      packed, nullptr, y,        q,          scales,
                                 starts, kRows,  kBytes,  kOutputs, DType::f32, bits};
  kernels.linear_quantized_rows(args, 0, kRows);
  kernels.linear_quantized(args, 0, kPanels * ((kRows + kQuantizedBlock - 1) / kQuantizedBlock));
  for (int64_t r = 0; r < kRows; ++r)
    for (int64_t c = 0; c < kOutputs; ++c) {
      int sum = 0;
      for (int64_t k = 0; k < kBytes; ++k) sum += static_cast<int>(x[r * kBytes + k]) * w[c * kBytes + k];
      if (y[r * kOutputs + c] != static_cast<float>(sum)) return false;
    }
  return true;
}

}  // namespace

bool multiplies_exactly(const Kernels& kernels) {
  uint32_t state = 1;
  if (!multiplies_bytes(kernels, 8, state) || !multiplies_bytes(kernels, 4, state)) return false;
  Product p;
  const auto sign = [&state] { return static_cast<int>(next(state) % 3) - 1; };
  int x[kRows * kInputs], w[kOutputs * kInputs];
  for (int64_t i = 0; i < kRows * kInputs; ++i) p.x[i] = from_integer(x[i] = sign());
  for (int64_t i = 0; i < kOutputs * kInputs; ++i) p.w[i] = from_integer(w[i] = sign());
  p.run(kernels, 0, kRows);
  for (int64_t r = 0; r < kRows; ++r)
    for (int64_t c = 0; c < kOutputs; ++c) {
      int sum = 0;
      for (int64_t k = 0; k < kInputs; ++k) sum += x[r * kInputs + k] * w[c * kInputs + k];
      if (from_integer(sum).bits != p.y[r * kOutputs + c].bits) return false;
    }

  // Fractions between 0.5 and 2 of either sign.
  const auto fraction = [&state] { return bf16{static_cast<uint16_t>((next(state) & 0x80ffu) | 0x3f00u)}; };
  for (bf16& v : p.x) v = fraction();
  for (bf16& v : p.w) v = fraction();
  p.run(kernels, 0, kRows);
  bf16 many[kRows * kOutputs];
  std::memcpy(many, p.y, sizeof(many));
  std::memset(p.y, 0, sizeof(p.y));
  for (int64_t r = 0; r < kRows; r += 5) p.run(kernels, r, kRows - r < 5 ? 1 : 5);
  return std::memcmp(many, p.y, sizeof(many)) == 0;
}

}  // namespace llmcli::cpu
