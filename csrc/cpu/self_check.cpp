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

}  // namespace

bool multiplies_exactly(const Kernels& kernels) {
  Product p;
  uint32_t state = 1;
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
