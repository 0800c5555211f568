// Cross-entropy of rows of V logits, and their gradient in place of the logits, as in cpu/cross_entropy.h;
// the sum of a matrix's parts. Traffic: logits are read once for the maximum and the sum of exponentials,
// which come in one pass as in softmax.cu, and once for the gradient: from registers where a row fits them,
// else from the L2 cache, which holds the rows that are under way; they are written once.
#include "functions.h"
#include "rows.h"

namespace llmcli::cuda {
namespace {

__device__ float shift_of(float maximum) { return maximum == -kInfinity ? 0.0f : maximum; }

template <class T, int kThreads, int kKept>
__global__ void __launch_bounds__(Team<kThreads>::kBlock)
    cross_entropy_kernel(const cpu::CrossEntropyArgs a, const int64_t rows) {
  using Threads = Team<kThreads>;
  const bool beyond = Threads::row() >= rows;  // warps of the last block, which works on its last row as well
  const int64_t row = beyond ? rows - 1 : Threads::row(), target = a.targets[row];
  T* const logits = static_cast<T*>(a.logits) + row * a.size;
  const bool capped = a.cap > 0.0f;
  const float inverse_cap = 1.0f / a.cap;
  const auto bounded = [&](float x) {
    return capped && x > -kInfinity ? a.cap * tanh_fast(x * inverse_cap) : x;
  };
  const float of_target = target < 0 ? 0.0f : to_float(logits[target]);

  const Row<T, kThreads, kKept> x(logits, a.size);
  float maximum = -kInfinity, total = 0.0f, sum = 0.0f;
  each_vector<T, kThreads, kKept>(a.size, [&](int n, int64_t i) {
    const Vector<T> xs = x.at(n, i);
    float s[kVector<T>], higher = maximum;
#pragma unroll
    for (int j = 0; j < kVector<T>; ++j) {
      const bool there = i + j < a.size;
      s[j] = there ? bounded(to_float(xs.at[j])) : -kInfinity;
      higher = fmaxf(higher, s[j]);
      if (there) sum += s[j];
    }
    const float shift = shift_of(higher);
    total *= exp_fast(maximum - shift);
#pragma unroll
    for (int j = 0; j < kVector<T>; ++j) total += exp_fast(s[j] - shift);
    maximum = higher;
  });
  const float highest = Threads::reduce(maximum, Max()), shift = shift_of(highest);
  total *= exp_fast(maximum - shift);
  Threads::sums(&total, &sum);
  if constexpr (kThreads == 32) sync_warp();  // as sums has barriers for a block: of_target has been read
  if (beyond) return;

  const float size = static_cast<float>(a.size), wanted = bounded(of_target);
  if (Threads::rank() == 0) {
    const double lse = static_cast<double>(shift + logf(total)), w = static_cast<double>(wanted);
    double nll = lse - w;
    if (a.smoothing != 0.0f) nll += static_cast<double>(a.smoothing) * (w - static_cast<double>(sum / size));
    a.losses[row] = target < 0 ? 0.0 : static_cast<double>(a.scale) * nll;
  }
  if (!a.gradient) return;
  const float inverse = a.scale / total, even = a.scale * a.smoothing / size;
  const float others = a.smoothing * (1.0f - 1.0f / size);  // exact where V is 1
  const float at_target = a.scale * ((exp_fast(wanted - shift) / total - 1.0f) + others);
  each_vector<T, kThreads, kKept>(a.size, [&](int n, int64_t i) {
    const Vector<T> xs = x.at(n, i);
    float g[kVector<T>];
#pragma unroll
    for (int j = 0; j < kVector<T>; ++j) {
      const float v = to_float(xs.at[j]);
      g[j] = i + j == target ? at_target : exp_fast(bounded(v) - shift) * inverse - even;
      if (capped) g[j] *= tanh_slope(v * inverse_cap);
      if (target < 0) g[j] = 0.0f;
    }
    store_vector(logits, i, a.size, g);
  });
}

constexpr int kThreads = 256;

template <class T>
__global__ void __launch_bounds__(kThreads)
    accumulate_kernel(const cpu::AccumulateArgs a, const int64_t size) {
  const int64_t i = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kVector<T>;
  if (i >= size) return;
  const Vector<T> part = load_vector(static_cast<const T*>(a.part), i, size);
  float sum[kVector<T>] = {};
  if (!a.first) load_weights<T>(a.sum, true, i, size, sum);
#pragma unroll
  for (int j = 0; j < kVector<T>; ++j) sum[j] += to_float(part.at[j]);
  if (a.y) return store_vector(static_cast<T*>(a.y), i, size, sum);
#pragma unroll
  for (int j = 0; j < kVector<T>; ++j)
    if (i + j < size) a.sum[i + j] = sum[j];
}

__global__ void __launch_bounds__(1024)
    sum_losses_kernel(const double* losses, const int64_t rows, float* total) {
  double* const parts = shared_memory<double>();
  const int thread = static_cast<int>(threadIdx.x);
  double sum = 0.0;
  for (int64_t row = thread; row < rows; row += 1024) sum += losses[row];
  parts[thread] = sum;
  for (int half = 512; half > 0; half /= 2) {
    sync_block();
    if (thread < half) parts[thread] += parts[thread + half];
  }
  if (thread == 0) *total = static_cast<float>(parts[0]);
}

}  // namespace

cudaError_t linear_cross_entropy(const cpu::CrossEntropyArgs& args, int64_t rows, cudaStream_t stream) {
  return with_dtype(args.dtype, [&](auto element) {
    using T = decltype(element);
    return with_team<T>(args.size, [&](auto way) {
      using Threads = Team<way.kThreads>;
      return launch(cross_entropy_kernel<T, way.kThreads, way.kKept>, Threads::grid(rows), Threads::kBlock,
                    Threads::kShared, stream, args, rows);
    });
  });
}

cudaError_t accumulate(const cpu::AccumulateArgs& args, int64_t rows, cudaStream_t stream) {
  const int64_t size = rows * args.size;
  return with_dtype(args.dtype, [&](auto element) {
    using T = decltype(element);
    constexpr int64_t kEach = kThreads * kVector<T>;
    return launch(accumulate_kernel<T>, dim3(static_cast<unsigned>((size + kEach - 1) / kEach)), kThreads, 0,
                  stream, args, size);
  });
}

cudaError_t sum_losses(const double* losses, int64_t rows, float* total, cudaStream_t stream) {
  return launch(sum_losses_kernel, dim3(1), 1024, sizeof(double) * 1024, stream, losses, rows, total);
}

}  // namespace llmcli::cuda
