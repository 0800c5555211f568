// Tiles of attention in bfloat16 and float16: rows in shared memory, products on tensor cores. A tile's rows
// lie 16 bytes further apart than they are long: eight of them, which an instruction loads at once, then
// touch all banks.
#pragma once
#include "attention.h"

namespace llmcli::cuda {

constexpr int kChunks = kKeys / 8;  // of keys: one for each register of scores

template <int kD>
struct Tile {
  static constexpr int kStride = kD + 8;  // elements
  static constexpr size_t bytes(int rows) { return static_cast<size_t>(rows) * kStride * 2; }

  // Brings rows 0 to kRows into shared memory; from(row) is where a row lies, null for zeros. What is beyond
  // D is zero as well. Arrives with the copies' group where rows have `vectors`: 16 bytes by 16 bytes.
  template <int kRows, int kThreads, class T, class From>
  __device__ static void load(T* tile, int D, bool vectors, const T* anywhere, const From& from) {
    for (int i = static_cast<int>(threadIdx.x); i < kRows * (kD / 8); i += kThreads) {
      const int row = i / (kD / 8), column = i % (kD / 8) * 8;
      T* const to = tile + row * kStride + column;
      const T* const source = from(row);
      if (vectors) {
        const bool there = source && column < D;
        copy_async(to, there ? source + column : anywhere, there);
      } else {
        Vector<T> x{};
        for (int j = 0; j < 8; ++j)
          if (source && column + j < D) x.at[j] = source[column + j];
        *reinterpret_cast<Vector<T>*>(to) = x;
      }
    }
  }
  template <int kThreads, class T>
  __device__ static void load_keys(T* tile, const AttentionArgs& a, const Head& head, bool vectors,
                                   const T* x, int64_t stride, int block) {
    load<kKeys, kThreads>(tile, static_cast<int>(a.D), vectors, x, [&](int row) {
      const int64_t key = int64_t{block} * kKeys + row;
      return key < head.keys ? x + key * stride : nullptr;
    });
  }

  // Operand A: 16 rows, columns 16 k to 16 k + 16.
  template <class T>
  __device__ static void operand_a(const T* rows, int k, uint32_t (&a)[4]) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    load_matrices(rows + lane % 16 * kStride + k * 16 + lane / 16 * 8, a);
  }
  // Scores of 16 rows with keys from 16 n on, in chunks of 8.
  template <int kScores, class T, class A>
  __device__ static void multiply_keys(const T* keys, int n, const A& a, float (&s)[kScores][4]) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const T* const from = keys + (n * 16 + lane / 16 * 8 + lane % 8) * kStride + lane / 8 % 2 * 8;
#pragma unroll
    for (int k = 0; k < kD / 16; ++k) {
      uint32_t q[4];
      a(k, q);
#pragma unroll
      for (int m = 0; m < kScores / 2; ++m) {
        uint32_t b[4];
        load_matrices(from + m * 16 * kStride + k * 16, b);
        multiply<T>(q, b[0], b[1], s[2 * m]);
        multiply<T>(q, b[2], b[3], s[2 * m + 1]);
      }
    }
  }
  // Weighted sums of columns 16 n to 16 n + 16 of kRows values, as two chunks of 8.
  template <int kRows, class T, class A>
  __device__ static void multiply_values(const T* values, int n, const A& a, float (&o)[2][4]) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const T* const from = values + lane % 16 * kStride + n * 16 + lane / 16 * 8;
#pragma unroll
    for (int k = 0; k < kRows / 16; ++k) {
      uint32_t b[4], p[4];
      a(k, p);
      load_matrices_transposed(from + k * 16 * kStride, b);
      multiply<T>(p, b[0], b[1], o[0]);
      multiply<T>(p, b[2], b[3], o[1]);
    }
  }

  // A value that is not finite must not reach rows that do not see its key, for which its weight is 0: it is
  // zero in the tile, and add_infinite adds it where it is seen. Whether there was any.
  template <int kRows, int kThreads, class T>
  __device__ static bool clear_infinite(T* values) {
    bool any = false;
    for (int i = static_cast<int>(threadIdx.x); i < kRows * kD; i += kThreads) {
      T& x = values[i / kD * kStride + i % kD];
      if (isfinite(to_float(x))) continue;
      any = true;
      x = T{};
    }
    return sync_block_or(any);
  }
  template <class T>
  __device__ static void add_infinite(const AttentionArgs& a, const Head& head, int block, int column,
                                      const int (&limits)[2], float (&o)[4]) {
    const T* const v = head.v<T>(a);
    for (int64_t key = int64_t{block} * kKeys; key < int64_t{block + 1} * kKeys && key < head.keys; ++key)
      for (int j = 0; j < 2; ++j) {
        const float x = column + j < a.D ? to_float(v[key * a.v_s + column + j]) : 0.0f;
        if (isfinite(x)) continue;
        for (int half = 0; half < 2; ++half)
          if (key < limits[half]) o[half * 2 + j] += x;
      }
  }
};

// Whether every row begins on 16 bytes, so that copies can be of 16 bytes where D is a multiple of as many.
template <class T>
bool begin_on_vectors(const void* p, std::initializer_list<int64_t> strides) {
  bool all = reinterpret_cast<uintptr_t>(p) % 16 == 0;
  for (const int64_t stride : strides) all = all && stride % kVector<T> == 0;
  return all;
}
template <class T>
bool in_vectors(const AttentionArgs& a) {
  return a.D % kVector<T> == 0 && begin_on_vectors<T>(a.q, {a.q_b, a.q_t, a.q_h}) &&
         begin_on_vectors<T>(a.k, {a.k_b, a.k_s, a.k_g}) && begin_on_vectors<T>(a.v, {a.v_b, a.v_s, a.v_g});
}

// f(size) with the smallest tile that holds the head.
template <int kD_>
struct HeadSize {
  static constexpr int kD = kD_;
};
template <class F>
cudaError_t with_head_size(int64_t D, const F& f) {
  if (D <= 64) return f(HeadSize<64>());
  if (D <= 80) return f(HeadSize<80>());
  if (D <= 96) return f(HeadSize<96>());
  if (D <= 128) return f(HeadSize<128>());
  if (D <= 256) return f(HeadSize<256>());
  return cudaErrorInvalidValue;
}

}  // namespace llmcli::cuda
