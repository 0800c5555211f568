// Row softmax, or its logarithm, and its backward, as in cpu/softmax.h. Traffic: a row is read once and
// written once; rows too long for registers are read twice, the second time from the L2 cache. The maximum
// and the sum of exponentials come in one pass: where the maximum grows, the sum so far shrinks with it
// (https://arxiv.org/abs/1805.02867).
#include "rows.h"

namespace llmcli::cuda {
namespace {

template <class T>
__device__ void scores(const cpu::SoftmaxArgs& a, const Vector<T>& x, int64_t mask, int64_t i,
                       float (&s)[kVector<T>]) {
  Vector<T> added{};
  if (a.mask && !a.mask_is_bool) added = load_vector(static_cast<const T*>(a.mask) + mask, i, a.size);
#pragma unroll
  for (int j = 0; j < kVector<T>; ++j) {
    s[j] = to_float(x.at[j]) * a.scale;
    if (a.mask && !a.mask_is_bool) s[j] += to_float(added.at[j]);
    const bool hidden = a.mask_is_bool && i + j < a.size && !static_cast<const bool*>(a.mask)[mask + i + j];
    if (hidden || i + j >= a.size) s[j] = -kInfinity;
  }
}

// With -inf as the maximum, which may still hide a NaN, subtracting 0 leaves -inf and NaN as they are.
__device__ float shift_of(float maximum) { return maximum == -kInfinity ? 0.0f : maximum; }

template <class T, int kThreads, int kKept>
__global__ void __launch_bounds__(Team<kThreads>::kBlock)
    softmax_kernel(const cpu::SoftmaxArgs a, const int64_t rows) {
  using Threads = Team<kThreads>;
  const bool beyond = Threads::row() >= rows;  // warps of the last block, which works on its last row as well
  const int64_t row = beyond ? rows - 1 : Threads::row();
  const int64_t mask = a.mask ? offset_of(a.mask_rows, row) : 0;
  const Row<T, kThreads, kKept> x(static_cast<const T*>(a.x) + offset_of(a.x_rows, row), a.size);
  T* const y = static_cast<T*>(a.y) + offset_of(a.y_rows, row);

  float maximum = -kInfinity, sum = 0.0f;
  each_vector<T, kThreads, kKept>(a.size, [&](int n, int64_t i) {
    float s[kVector<T>];
    scores<T>(a, x.at(n, i), mask, i, s);
    float higher = maximum;
#pragma unroll
    for (int j = 0; j < kVector<T>; ++j) higher = fmaxf(higher, s[j]);
    const float shift = shift_of(higher);
    sum *= exp2_fast((maximum - shift) * kLog2E);
#pragma unroll
    for (int j = 0; j < kVector<T>; ++j) sum += exp2_fast((s[j] - shift) * kLog2E);
    maximum = higher;
  });
  const float shift = shift_of(Threads::reduce(maximum, Max()));
  sum = Threads::reduce(sum * exp2_fast((maximum - shift) * kLog2E), Sum());

  const float inverse = sum == 0.0f ? 0.0f : 1.0f / sum, offset = sum == 0.0f ? 0.0f : logf(sum);
  if (beyond) return;
  each_vector<T, kThreads, kKept>(a.size, [&](int n, int64_t i) {
    float s[kVector<T>];
    scores<T>(a, x.at(n, i), mask, i, s);
#pragma unroll
    for (int j = 0; j < kVector<T>; ++j)
      s[j] = a.log ? s[j] - shift - offset : exp2_fast((s[j] - shift) * kLog2E) * inverse;
    store_vector(y, i, a.size, s);
  });
}

// The gradient as far as it is visible, and the probability: a hidden element's logarithm is -inf, and its
// gradient must reach neither x nor the sum.
template <class T>
__device__ void gradient_and_weight(const cpu::SoftmaxBackwardArgs& a, const Vector<T>& grad,
                                    const Vector<T>& y, int j, float* g, float* p) {
  *g = to_float(grad.at[j]);
  *p = to_float(y.at[j]);
  if (!a.log) return;
  if (*p == -kInfinity) *g = 0.0f;
  *p = exp2_fast(*p * kLog2E);
}

template <class T, int kThreads, int kKept>
__global__ void __launch_bounds__(Team<kThreads>::kBlock)
    softmax_backward_kernel(const cpu::SoftmaxBackwardArgs a, const int64_t rows) {
  using Threads = Team<kThreads>;
  const bool beyond = Threads::row() >= rows;
  const int64_t row = beyond ? rows - 1 : Threads::row();
  const Row<T, kThreads, kKept> grad(static_cast<const T*>(a.grad) + offset_of(a.grad_rows, row), a.size);
  const Row<T, kThreads, kKept> y(static_cast<const T*>(a.y) + row * a.size, a.size);
  T* const dx = static_cast<T*>(a.dx) + row * a.size;

  float sum = 0.0f;
  each_vector<T, kThreads, kKept>(a.size, [&](int n, int64_t i) {
    const Vector<T> grads = grad.at(n, i), ys = y.at(n, i);
#pragma unroll
    for (int j = 0; j < kVector<T>; ++j) {
      float g, p;
      gradient_and_weight<T>(a, grads, ys, j, &g, &p);
      sum += a.log ? g : g * p;
    }
  });
  sum = Threads::reduce(sum, Sum());
  if (beyond) return;
  each_vector<T, kThreads, kKept>(a.size, [&](int n, int64_t i) {
    const Vector<T> grads = grad.at(n, i), ys = y.at(n, i);
    float d[kVector<T>];
#pragma unroll
    for (int j = 0; j < kVector<T>; ++j) {
      float g, p;
      gradient_and_weight<T>(a, grads, ys, j, &g, &p);
      d[j] = a.scale * (a.log ? g - p * sum : p * (g - sum));
    }
    store_vector(dx, i, a.size, d);
  });
}

}  // namespace

cudaError_t softmax(const cpu::SoftmaxArgs& args, int64_t rows, cudaStream_t stream) {
  return with_dtype(args.dtype, [&](auto element) {
    using T = decltype(element);
    return with_team<T>(args.size, [&](auto way) {
      using Threads = Team<way.kThreads>;
      return launch(softmax_kernel<T, way.kThreads, way.kKept>, Threads::grid(rows), Threads::kBlock,
                    Threads::kShared, stream, args, rows);
    });
  });
}

cudaError_t softmax_backward(const cpu::SoftmaxBackwardArgs& args, int64_t rows, cudaStream_t stream) {
  return with_dtype(args.dtype, [&](auto element) {
    using T = decltype(element);
    return with_team<T>(args.size, [&](auto way) {
      using Threads = Team<way.kThreads>;
      return launch(softmax_backward_kernel<T, way.kThreads, way.kKept>, Threads::grid(rows), Threads::kBlock,
                    Threads::kShared, stream, args, rows);
    });
  });
}

}  // namespace llmcli::cuda
