// The instructions of csrc/cuda/ptx.h on a CPU.
#pragma once
#include <cuda_runtime.h>

#include <cmath>
#include <cstring>

#include "cpu/target.h"
#define LLMCLI_ISA emulated
#include "cpu/half.h"

namespace llmcli::cuda {

using cpu::bf16;
using cpu::f16;
using cpu::emulated::from_float;
using cpu::emulated::to_float;

template <class T>
T* shared_memory() {
  return reinterpret_cast<T*>(emulation::machine().shared);
}
inline void sync_block() { emulation::sync_block(); }
inline void sync_warp() {
  char none;
  emulation::together("sync_warp", &none, [](char**) {});
}
template <class T>
T shuffle_xor(T x, int lanes) {
  struct Operands {
    T x, y;
    int lanes;
  } mine{x, x, lanes};
  emulation::together("shuffle_xor", &mine, [](Operands** all) {
    for (int lane = 0; lane < emulation::kWarp; ++lane) all[lane]->y = all[lane ^ all[lane]->lanes]->x;
  });
  return mine.y;
}

inline float exp2_fast(float x) {
  const float y = std::exp2(x);
  return y < 1.17549435e-38f ? 0.0f : y;
}

}  // namespace llmcli::cuda
