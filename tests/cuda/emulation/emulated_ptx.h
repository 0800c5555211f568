// The instructions of csrc/cuda/ptx.h on a CPU.
#pragma once
#include <cuda_runtime.h>

#include <algorithm>
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
using std::isfinite;
using std::max;
using std::min;

template <class T>
T* shared_memory() {
  return reinterpret_cast<T*>(emulation::machine().shared);
}
inline void sync_block() { emulation::sync_block(); }
inline bool sync_block_or(bool x) { return emulation::sync_block(x); }
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
inline float multiply_alone(float a, float b) { return a * b; }
inline float add_alone(float a, float b) { return a + b; }
inline void add_shared(unsigned long long* to, unsigned long long x) { *to += x; }
inline unsigned bits_of(float x) {
  unsigned y;
  std::memcpy(&y, &x, 4);
  return y;
}
inline float from_bits(unsigned x) {
  float y;
  std::memcpy(&y, &x, 4);
  return y;
}
inline int dot_bytes(uint32_t u, uint32_t s, int sum) {
  for (int i = 0; i < 32; i += 8)
    sum += static_cast<int>(u >> i & 255) * static_cast<int>(static_cast<int8_t>(s >> i & 255));
  return sum;
}
inline float reciprocal_fast(float x) { return 1.0f / x; }

template <class T>
uint32_t pack(float low, float high) {
  T x[2];
  from_float(low, &x[0]), from_float(high, &x[1]);
  return static_cast<uint32_t>(x[1].bits) << 16 | x[0].bits;
}

inline void check_shared(const char* what, const void* p) {
  const emulation::Machine& m = emulation::machine();
  const unsigned char* const at = static_cast<const unsigned char*>(p);
  if (at < m.shared || at + 16 > m.shared_end || reinterpret_cast<uintptr_t>(p) % 16 != 0)
    emulation::fail(std::string(what) + ": expected 16 aligned bytes of shared memory");
}

// In one order of threads a copy arrives when it is asked for, in the other when it is waited for.
inline void copy_async(void* to, const void* from, bool there) {
  emulation::Machine& m = emulation::machine();
  check_shared("copy_async", to);
  if (reinterpret_cast<uintptr_t>(from) % 16 != 0)
    emulation::fail("copy_async: expected a source on 16 bytes");
  const emulation::Copy copy{to, there ? from : nullptr};
  if (m.reversed) copy.perform();
  m.fibers[m.current].copies.back().push_back(copy);
}
inline void copy_commit() {
  emulation::Machine& m = emulation::machine();
  m.fibers[m.current].copies.emplace_back();
}
template <int kGroups>
void copy_wait() {
  emulation::Machine& m = emulation::machine();
  auto& groups = m.fibers[m.current].copies;
  for (; groups.size() > kGroups + 1; groups.erase(groups.begin()))
    for (const emulation::Copy& copy : groups[0])
      if (!m.reversed) copy.perform();
}

// Row and column of lane's element i of a fragment of 16 x 16 (a), 16 x 8 (b) and 16 x 8 (c), as the PTX
// ISA's section on m16n8k16 gives them.
inline int row_of_a(int lane, int i) { return lane / 4 + (i < 2 || (i >= 4 && i < 6) ? 0 : 8); }
inline int column_of_a(int lane, int i) { return lane % 4 * 2 + (i & 1) + (i >= 4 ? 8 : 0); }
inline int row_of_b(int lane, int i) { return lane % 4 * 2 + (i & 1) + (i >= 2 ? 8 : 0); }
inline int column_of_b(int lane, int) { return lane / 4; }
inline int row_of_c(int lane, int i) { return lane / 4 + (i >= 2 ? 8 : 0); }
inline int column_of_c(int lane, int i) { return lane % 4 * 2 + (i & 1); }

template <class T>
float half_of(const uint32_t* registers, int i) {
  T x;
  x.bits = static_cast<uint16_t>(registers[i / 2] >> (i % 2 * 16));
  return to_float(x);
}

template <class T>
void multiply(const uint32_t (&a)[4], uint32_t b0, uint32_t b1, float (&c)[4]) {
  struct Operands {
    const uint32_t* a;
    uint32_t b[2];
    float* c;
  } mine{a, {b0, b1}, c};
  emulation::together("multiply", &mine, [](Operands** all) {
    float a[16][16], b[8][16];
    for (int lane = 0; lane < emulation::kWarp; ++lane) {
      for (int i = 0; i < 8; ++i) a[row_of_a(lane, i)][column_of_a(lane, i)] = half_of<T>(all[lane]->a, i);
      for (int i = 0; i < 4; ++i) b[column_of_b(lane, i)][row_of_b(lane, i)] = half_of<T>(all[lane]->b, i);
    }
    for (int lane = 0; lane < emulation::kWarp; ++lane)
      for (int i = 0; i < 4; ++i) {
        float sum = 0.0f;
        for (int k = 0; k < 16; ++k) sum += a[row_of_c(lane, i)][k] * b[column_of_c(lane, i)][k];
        all[lane]->c[i] += sum;
      }
  });
}

// The section on m16n8k32: byte i of a lane's registers; c as above.
inline int row_of_byte_a(int lane, int i) { return lane / 4 + (i / 4 % 2 == 0 ? 0 : 8); }
inline int column_of_byte_a(int lane, int i) { return lane % 4 * 4 + i % 4 + (i < 8 ? 0 : 16); }
inline int row_of_byte_b(int lane, int i) { return lane % 4 * 4 + i % 4 + (i < 4 ? 0 : 16); }

inline void multiply_bytes(const uint32_t (&a)[4], uint32_t b0, uint32_t b1, int (&c)[4]) {
  struct Operands {
    const uint32_t* a;
    uint32_t b[2];
    int* c;
  } mine{a, {b0, b1}, c};
  emulation::together("multiply_bytes", &mine, [](Operands** all) {
    int a[16][32], b[8][32];
    for (int lane = 0; lane < emulation::kWarp; ++lane) {
      for (int i = 0; i < 16; ++i)
        a[row_of_byte_a(lane, i)][column_of_byte_a(lane, i)] =
            static_cast<int8_t>(all[lane]->a[i / 4] >> (i % 4 * 8) & 255);
      for (int i = 0; i < 8; ++i)
        b[lane / 4][row_of_byte_b(lane, i)] = static_cast<int>(all[lane]->b[i / 4] >> (i % 4 * 8) & 255);
    }
    for (int lane = 0; lane < emulation::kWarp; ++lane)
      for (int i = 0; i < 4; ++i)
        for (int k = 0; k < 32; ++k) all[lane]->c[i] += a[row_of_c(lane, i)][k] * b[column_of_c(lane, i)][k];
  });
}

template <bool kTransposed>
void load_matrices_emulated(const void* row, uint32_t (&x)[4]) {
  check_shared("load_matrices", row);
  struct Operands {
    const void* row;
    uint32_t* x;
  } mine{row, x};
  emulation::together(kTransposed ? "load_matrices_transposed" : "load_matrices", &mine, [](Operands** all) {
    for (int lane = 0; lane < emulation::kWarp; ++lane)
      for (int matrix = 0; matrix < 4; ++matrix) {
        uint16_t pair[2];
        for (int j = 0; j < 2; ++j) {
          const int row = kTransposed ? lane % 4 * 2 + j : lane / 4,
                    column = kTransposed ? lane / 4 : lane % 4 * 2 + j;
          pair[j] = static_cast<const uint16_t*>(all[matrix * 8 + row]->row)[column];
        }
        all[lane]->x[matrix] = static_cast<uint32_t>(pair[1]) << 16 | pair[0];
      }
  });
}
inline void load_matrices(const void* row, uint32_t (&x)[4]) { load_matrices_emulated<false>(row, x); }
inline void load_matrices_transposed(const void* row, uint32_t (&x)[4]) {
  load_matrices_emulated<true>(row, x);
}

}  // namespace llmcli::cuda
