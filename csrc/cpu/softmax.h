// Row softmax: y = softmax(scale * x + mask), or its logarithm, over V elements.
// Traffic: x is read from memory once (the later passes find the row in cache), y is written once.
// A row whose every element is masked out or -inf gives zeros (log: -inf); NaN and +inf in a row give NaN.
// Order of the sum: N lanes, element i in lane i % N, then the fixed tree of reduce_add. It depends on V
// alone.
#pragma once

namespace llmcli::cpu::LLMCLI_ISA {

// scale * x + mask at element i; lanes past the end are -inf.
template <typename T, int kMask>
LLMCLI_INLINE F softmax_score(const T* x, const void* mask, F scale, int64_t i, int64_t n) {
  F s = n >= N ? mul(load(x + i), scale) : load_n(x + i, n, 0.0f);
  if (n < N) s = mul(s, scale);
  if constexpr (kMask == 1) {
    const T* m = static_cast<const T*>(mask) + i;
    s = add(s, n >= N ? load(m) : load_n(m, n));
  } else if constexpr (kMask == 2) {
    const unsigned char* m = static_cast<const unsigned char*>(mask) + i;
    float keep[N] = {};
    for (int64_t j = 0; j < N && j < n; ++j) keep[j] = m[j] ? 1.0f : 0.0f;
    s = select(less(load(keep), set(0.5f)), set(-INFINITY), s);
  }
  if (n < N) {
    float lanes[N];
    store(lanes, s);
    s = load_n(lanes, n, -INFINITY);
  }
  return s;
}

template <typename T, int kMask>
void softmax_row(const SoftmaxArgs& a, const T* x, T* y, const void* mask) {
  const int64_t V = a.size;
  const F scale = set(a.scale);
  F top = set(-INFINITY);
  for (int64_t i = 0; i < V; i += N) top = max(top, softmax_score<T, kMask>(x, mask, scale, i, V - i));
  const float m = reduce_max(top);
  if (m == -INFINITY) {
    bool nan = false;
    for (int64_t i = 0; i < V; i += N) {
      const F s = softmax_score<T, kMask>(x, mask, scale, i, V - i);
      float lanes[N];
      store(lanes, s);
      for (int j = 0; j < N; ++j) nan = nan || lanes[j] != lanes[j];
    }
    const F fill = set(nan ? NAN : a.log ? -INFINITY : 0.0f);
    for (int64_t i = 0; i < V; i += N) store_n(y + i, fill, V - i);
    return;
  }
  const F shift = set(m);
  F sum = zero();
  for (int64_t i = 0; i < V; i += N)
    sum = add(sum, exp(sub(softmax_score<T, kMask>(x, mask, scale, i, V - i), shift)));
  const float total = reduce_add(sum);
  if (a.log) {
    const F offset = set(logf(total));
    for (int64_t i = 0; i < V; i += N)
      store_n(y + i, sub(sub(softmax_score<T, kMask>(x, mask, scale, i, V - i), shift), offset), V - i);
  } else {
    const F inverse = set(1.0f / total);
    for (int64_t i = 0; i < V; i += N)
      store_n(y + i, mul(exp(sub(softmax_score<T, kMask>(x, mask, scale, i, V - i), shift)), inverse), V - i);
  }
}

template <typename T>
void softmax_rows(const SoftmaxArgs& a, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const T* x = static_cast<const T*>(a.x) + row * a.x_stride;
    T* y = static_cast<T*>(a.y) + row * a.y_stride;
    const int64_t offset = row * a.mask_stride;
    if (a.mask == nullptr) {
      softmax_row<T, 0>(a, x, y, nullptr);
    } else if (a.mask_is_bool) {
      softmax_row<T, 2>(a, x, y, static_cast<const unsigned char*>(a.mask) + offset);
    } else {
      softmax_row<T, 1>(a, x, y, static_cast<const T*>(a.mask) + offset);
    }
  }
}

void softmax(const SoftmaxArgs& a, int64_t begin, int64_t end) {
  switch (a.dtype) {
    case DType::f32:
      return softmax_rows<float>(a, begin, end);
    case DType::bf16:
      return softmax_rows<bf16>(a, begin, end);
    case DType::f16:
      return softmax_rows<f16>(a, begin, end);
  }
}

}  // namespace llmcli::cpu::LLMCLI_ISA
