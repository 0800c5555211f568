// Layer norm and RMS norm, with or without the residual add, and their backward, as in cpu/norm.h. Traffic: a
// row is read once and written once; rows too long for registers are read again from the L2 cache. The mean
// comes first and then the squares around it, so that a large common offset costs no precision.
#include "rows.h"

namespace llmcli::cuda {
namespace {

// Normalised element: (x - mean) * inverse + shift; `shift` makes up for the rounding of the mean.
struct Statistics {
  float mean, inverse, shift;
  __device__ float normalised(float x) const { return (x - mean) * inverse + shift; }
};

template <class T, int kThreads, int kKept>
__device__ Statistics statistics(const Row<T, kThreads, kKept>& x, int64_t size, float eps, bool rms) {
  using Threads = Team<kThreads>;
  const float count = static_cast<float>(size);
  float mean = 0.0f, squares = 0.0f, errors = 0.0f;
  if (!rms) {
    each_vector<T, kThreads, kKept>(size, [&](int n, int64_t i) {
      const Vector<T> xs = x.at(n, i);
#pragma unroll
      for (int j = 0; j < kVector<T>; ++j) mean += to_float(xs.at[j]);
    });
    mean = Threads::reduce(mean, Sum()) / count;
  }
  each_vector<T, kThreads, kKept>(size, [&](int n, int64_t i) {
    const Vector<T> xs = x.at(n, i);
#pragma unroll
    for (int j = 0; j < kVector<T>; ++j) {
      const float d = i + j < size ? to_float(xs.at[j]) - mean : 0.0f;
      squares += d * d;
      errors += d;
    }
  });
  if (rms) {
    squares = Threads::reduce(squares, Sum());
    return {0.0f, 1.0f / sqrtf(squares / count + eps), 0.0f};
  }
  Threads::sums(&squares, &errors);
  const float error = errors / count, variance = squares / count - error * error;
  const float inverse = 1.0f / sqrtf((variance < 0.0f ? 0.0f : variance) + eps);  // a NaN stays one
  return {mean, inverse, -error * inverse};
}

template <class T, int kThreads, int kKept>
__global__ void __launch_bounds__(Team<kThreads>::kBlock)
    norm_kernel(const cpu::NormArgs a, const int64_t rows) {
  using Threads = Team<kThreads>;
  const bool beyond = Threads::row() >= rows;  // warps of the last block, which works on its last row as well
  const int64_t row = beyond ? rows - 1 : Threads::row();
  const T* const from = static_cast<const T*>(a.x) + offset_of(a.x_rows, row);
  const T* const residual =
      a.residual ? static_cast<const T*>(a.residual) + offset_of(a.residual_rows, row) : nullptr;
  T* const total = static_cast<T*>(a.total) + row * a.size;
  T* const y = static_cast<T*>(a.y) + row * a.size;

  const Row<T, kThreads, kKept> x(residual ? total : from, a.size, [&](int64_t i) {
    Vector<T> xs = load_vector(from, i, a.size);
    if (!residual) return xs;
    const Vector<T> added = load_vector(residual, i, a.size);
    float sum[kVector<T>];
#pragma unroll
    for (int j = 0; j < kVector<T>; ++j) {
      sum[j] = to_float(xs.at[j]) + to_float(added.at[j]);
      from_float(sum[j], &xs.at[j]);
    }
    store_vector(total, i, a.size, sum);
    return xs;
  });
  const Statistics s = statistics<T, kThreads, kKept>(x, a.size, a.eps, a.rms);
  if (beyond) return;
  each_vector<T, kThreads, kKept>(a.size, [&](int n, int64_t i) {
    const Vector<T> xs = x.at(n, i);
    float w[kVector<T>], b[kVector<T>] = {};
    load_weights<T>(a.weight, a.wide_weight, i, a.size, w);
    if (a.bias) load_weights<T>(a.bias, a.wide_weight, i, a.size, b);
#pragma unroll
    for (int j = 0; j < kVector<T>; ++j) w[j] = s.normalised(to_float(xs.at[j])) * w[j] + b[j];
    store_vector(y, i, a.size, w);
  });
}

// Gradients of weight and bias over a block's rows: in the registers of each team's threads, which the block
// adds in order, or, where rows are too long for them, in memory.
template <class T, int kThreads, int kKept>
class WeightGradients {
 public:
  __device__ void add(const cpu::NormBackwardArgs& a, bool first, int n, int64_t i, int j, float weight,
                      float bias) {
    if constexpr (kKept > 0) {
      weights_[n][j] += weight, biases_[n][j] += bias;
    } else {
      if (i + j >= a.size) return;
      float* const at = partial(a) + i + j;
      *at = first ? weight : *at + weight;
      if (!a.rms) at[a.size] = first ? bias : at[a.size] + bias;
    }
  }

  __device__ void finish(const cpu::NormBackwardArgs& a) const {
    if constexpr (kKept > 0) {
      const int64_t width = a.rms ? a.size : 2 * a.size;
      const int team = static_cast<int>(threadIdx.x) / kThreads;
      float* const mine = Team<kThreads>::kTeams == 1 ? partial(a) : shared_memory<float>() + team * width;
      each_vector<T, kThreads, kKept>(a.size, [&](int n, int64_t i) {
#pragma unroll
        for (int j = 0; j < kVector<T>; ++j) {
          if (i + j >= a.size) continue;
          mine[i + j] = weights_[n][j];
          if (!a.rms) mine[a.size + i + j] = biases_[n][j];
        }
      });
      if constexpr (Team<kThreads>::kTeams > 1) {
        sync_block();
        const float* const all = shared_memory<float>();
        for (int64_t c = threadIdx.x; c < width; c += Team<kThreads>::kBlock) {
          float sum = all[c];
          for (int t = 1; t < Team<kThreads>::kTeams; ++t) sum += all[t * width + c];
          partial(a)[c] = sum;
        }
      }
    }
  }

 private:
  __device__ static float* partial(const cpu::NormBackwardArgs& a) {
    return a.partial + static_cast<int64_t>(blockIdx.x) * (a.rms ? 1 : 2) * a.size;
  }

  float weights_[kKept > 0 ? kKept : 1][kVector<T>] = {}, biases_[kKept > 0 ? kKept : 1][kVector<T>] = {};
};

// A block takes kRowBlock rows, team by team. With v the normalised row and h = grad * weight: dx = (h -
// mean(h) - v * mean(h * v)) * inverse, without mean(h) in RMS norm.
template <class T, int kThreads, int kKept>
__global__ void __launch_bounds__(Team<kThreads>::kBlock)
    norm_backward_kernel(const cpu::NormBackwardArgs a) {
  using Threads = Team<kThreads>;
  WeightGradients<T, kThreads, kKept> gradients;
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * cpu::kRowBlock,
                end = begin + cpu::kRowBlock < a.rows ? begin + cpu::kRowBlock : a.rows;
  for (int64_t row = begin + static_cast<int>(threadIdx.x) / kThreads; row < end; row += Threads::kTeams) {
    const Row<T, kThreads, kKept> x(static_cast<const T*>(a.x) + offset_of(a.x_rows, row), a.size);
    const Row<T, kThreads, kKept> grad(static_cast<const T*>(a.grad) + offset_of(a.grad_rows, row), a.size);
    const Statistics s = statistics<T, kThreads, kKept>(x, a.size, a.eps, a.rms);
    float h_sum = 0.0f, hv_sum = 0.0f;
    each_vector<T, kThreads, kKept>(a.size, [&](int n, int64_t i) {
      const Vector<T> xs = x.at(n, i), grads = grad.at(n, i);
      float w[kVector<T>];
      load_weights<T>(a.weight, a.wide_weight, i, a.size, w);
#pragma unroll
      for (int j = 0; j < kVector<T>; ++j) {
        const float g = to_float(grads.at[j]), v = s.normalised(to_float(xs.at[j])), h = g * w[j];
        gradients.add(a, row == begin, n, i, j, g * v, g);
        h_sum += h;
        hv_sum += h * v;
      }
    });
    Threads::sums(&h_sum, &hv_sum);
    const float h_mean = a.rms ? 0.0f : h_sum / static_cast<float>(a.size),
                hv_mean = hv_sum / static_cast<float>(a.size);
    const T* const extra = a.extra ? static_cast<const T*>(a.extra) + offset_of(a.extra_rows, row) : nullptr;
    T* const dx = static_cast<T*>(a.dx) + row * a.size;
    each_vector<T, kThreads, kKept>(a.size, [&](int n, int64_t i) {
      const Vector<T> xs = x.at(n, i), grads = grad.at(n, i);
      Vector<T> more{};
      if (extra) more = load_vector(extra, i, a.size);
      float w[kVector<T>];
      load_weights<T>(a.weight, a.wide_weight, i, a.size, w);
#pragma unroll
      for (int j = 0; j < kVector<T>; ++j) {
        const float v = s.normalised(to_float(xs.at[j])), h = to_float(grads.at[j]) * w[j];
        w[j] = (h - h_mean - v * hv_mean) * s.inverse + to_float(more.at[j]);
      }
      store_vector(dx, i, a.size, w);
    });
  }
  gradients.finish(a);
}

// As with_team, with fewer vectors for each thread: beside a row lie its gradient and those of the weights.
template <class T, class F>
cudaError_t with_backward_team(int64_t size, const F& f) {
  const int64_t vectors = (size + kVector<T> - 1) / kVector<T>;
  if (vectors <= 4 * 32) return f(Way<32, 4>());
  if (vectors <= 2 * 256) return f(Way<256, 2>());
  if (vectors <= 2 * 512) return f(Way<512, 2>());
  return f(Way<1024, 0>());
}

}  // namespace

cudaError_t norm(const cpu::NormArgs& args, int64_t rows, cudaStream_t stream) {
  return with_dtype(args.dtype, [&](auto element) {
    using T = decltype(element);
    return with_team<T>(args.size, [&](auto way) {
      using Threads = Team<way.kThreads>;
      return launch(norm_kernel<T, way.kThreads, way.kKept>, Threads::grid(rows), Threads::kBlock,
                    Threads::kShared, stream, args, rows);
    });
  });
}

cudaError_t norm_backward(const cpu::NormBackwardArgs& args, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>((args.rows + cpu::kRowBlock - 1) / cpu::kRowBlock));
  return with_dtype(args.dtype, [&](auto element) {
    using T = decltype(element);
    return with_backward_team<T>(args.size, [&](auto way) {
      using Threads = Team<way.kThreads>;
      const size_t sums = sizeof(float) * 2 * static_cast<size_t>(args.size) * Threads::kTeams;
      return launch(norm_backward_kernel<T, way.kThreads, way.kKept>, grid, Threads::kBlock,
                    way.kThreads == 32 ? sums : Threads::kShared, stream, args);
    });
  });
}

}  // namespace llmcli::cuda
