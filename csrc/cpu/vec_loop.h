// Loops over a row of n elements in vectors. Every order here depends on n alone.
#pragma once

namespace llmcli::cpu::LLMCLI_ISA {

// At most N elements; where n is a literal N, the plain load or store.
template <typename T>
LLMCLI_INLINE F load_up_to(const T* p, int64_t n, float fill = 0.0f) {
  return n >= N ? load(p) : load_n(p, n, fill);
}
template <typename T>
LLMCLI_INLINE void store_up_to(T* p, F x, int64_t n) {
  if (n >= N) {
    store(p, x);
  } else {
    store_n(p, x, n);
  }
}

// f(i, n) for the vectors of a row: elements i to i + min(n, N).
template <class Body>
LLMCLI_INLINE void each_vector(int64_t size, Body f) {
  int64_t i = 0;
  for (; i + N <= size; i += N) f(i, N);
  if (i < size) f(i, size - i);
}

// The sum of f(i, n) in four vectors of partial sums; lanes of f past n are zero.
template <class Term>
LLMCLI_INLINE float sum_vectors(int64_t size, Term f) {
  F s[4] = {zero(), zero(), zero(), zero()};
  int64_t i = 0;
  for (; i + 4 * N <= size; i += 4 * N) {
    s[0] = add(s[0], f(i, N));
    s[1] = add(s[1], f(i + N, N));
    s[2] = add(s[2], f(i + 2 * N, N));
    s[3] = add(s[3], f(i + 3 * N, N));
  }
  for (; i < size; i += N) s[0] = add(s[0], f(i, size - i));
  return reduce_add(add(add(s[0], s[1]), add(s[2], s[3])));
}

// Weights and biases lie in the dtype of the rows or in float32.
template <typename T>
struct Weights {
  const void* data;
  bool wide;
  LLMCLI_INLINE F operator()(int64_t i, int64_t n) const {
    return wide ? load_up_to(static_cast<const float*>(data) + i, n)
                : load_up_to(static_cast<const T*>(data) + i, n);
  }
};

// Where row number `row` begins.
LLMCLI_INLINE int64_t offset_of(const Rows& rows, int64_t row) {
  if (rows.dims == 1) return row * rows.stride[0];
  int64_t offset = 0;
  for (int d = rows.dims - 1; d >= 0; --d) {
    offset += row % rows.size[d] * rows.stride[d];
    row /= rows.size[d];
  }
  return offset;
}

}  // namespace llmcli::cpu::LLMCLI_ISA
