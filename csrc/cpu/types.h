// Element types as they lie in memory. Nothing here depends on the instruction set.
#pragma once
#include <cstdint>

namespace llmcli::cpu {

enum class DType : int { f32, bf16, f16 };
enum class BlockKind : int { q4_0, q4_1, q5_0, q5_1, q8_0, q4_k, q5_k, q6_k };  // ggml's
enum class CacheType : int { f32, bf16, f16, i8 };                              // of cached keys and values

struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};

template <typename T>
struct dtype_of;
template <>
struct dtype_of<float> {
  static constexpr DType value = DType::f32;
};
template <>
struct dtype_of<bf16> {
  static constexpr DType value = DType::bf16;
};
template <>
struct dtype_of<f16> {
  static constexpr DType value = DType::f16;
};

}  // namespace llmcli::cpu
