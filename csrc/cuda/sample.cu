// One token of a row of V logits: temperature, top-k, top-p, min-p and inversion, without sorting. With l =
// (logit - highest) / temperature a token weighs e^l in units of 2^-40, a whole number, so that sums have no
// order and may come from atomic additions. Top-k and top-p keep what stands first by falling l and rising
// id: all above some l, and of its equals the first few. That l is found digit by digit, in three histograms
// of 11, 10 and 10 bits of its representation (radix selection). Traffic: one block has a row, which it reads
// 3 to 10 times, from the L2 cache after the first.
#include "functions.h"
#include "kernels.h"
#include "launch.h"

namespace llmcli::cuda {
namespace {

constexpr int kThreads = 512, kBins = 2048, kEach = kBins / kThreads;
using Whole = unsigned long long;

// Larger for a larger l, which is never above 0.
__device__ unsigned key_of(float l) { return 0x7fffffffu - bits_of(fabsf(l)); }
__device__ float of_key(unsigned key) { return -from_bits(0x7fffffffu - key); }
__device__ Whole weight_of(float l) { return static_cast<Whole>(exp_fast(l) * 1099511627776.0f); }

struct Shared {
  Whole bins[kBins];
  Whole parts[kThreads / 32];
  float tops[kThreads / 32];
  Whole found[2];  // a bin, and the sum above it
};

// The sum over the threads before this one, and over all.
struct Sums {
  Whole before, total;
};
__device__ Sums scan(Whole x, Shared* shared) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  Whole before = 0;
#pragma unroll
  for (int lanes = 1; lanes < 32; lanes *= 2) {
    const Whole other = shuffle_xor(x, lanes);
    if (lane & lanes) before += other;
    x += other;
  }
  sync_block();  // the parts of the scan before have been read
  if (lane == 0) shared->parts[warp] = x;
  sync_block();
  Whole total = 0;
  for (int w = 0; w < kThreads / 32; ++w) {
    if (w == warp) before += total;
    total += shared->parts[w];
  }
  return {before, total};
}

// f(id, l) for the elements of a vector from i on.
template <class T, class F>
__device__ void each_of(const SampleArgs& a, const T* row, int64_t i, float highest, const F& f) {
  const Vector<T> x = load_vector(row, i, a.size);
#pragma unroll
  for (int j = 0; j < kVector<T>; ++j)
    if (i + j < a.size) f(i + j, (to_float(x.at[j]) - highest) / a.temperature);
}
// The same for all elements that are this thread's.
template <class T, class F>
__device__ void each_element(const SampleArgs& a, const T* row, float highest, const F& f) {
  for (int64_t i = static_cast<int64_t>(threadIdx.x) * kVector<T>; i < a.size; i += kThreads * kVector<T>)
    each_of(a, row, i, highest, f);
}

// Where, from the highest key down, the sum of what tokens weigh reaches `limit`, and the sum above that key.
struct Bound {
  unsigned key;
  Whole above;
};
template <class T, class Weigh>
__device__ Bound select(const SampleArgs& a, const T* row, float highest, Whole limit, Shared* shared,
                        const Weigh& weigh) {
  Bound bound{0, 0};
  for (int digit = 0; digit < 3; ++digit) {
    const int shift = digit == 0 ? 20 : digit == 1 ? 10 : 0, width = digit == 0 ? 11 : 10;
    const unsigned bins = 1u << width;
    sync_block();  // the digit before has been read
    for (int b = static_cast<int>(threadIdx.x); b < kBins; b += kThreads) shared->bins[b] = 0;
    sync_block();
    each_element(a, row, highest, [&](int64_t, float l) {
      const unsigned key = key_of(l);
      if (key >> (shift + width) == bound.key)
        add_shared(shared->bins + (key >> shift & (bins - 1)), weigh(l));
    });
    sync_block();
    const unsigned first = bins - 1 - kEach * threadIdx.x;  // of kEach bins, downwards
    const bool mine = kEach * threadIdx.x < bins;
    Whole sum = 0;
    for (int b = 0; mine && b < kEach; ++b) sum += shared->bins[first - b];
    Whole above = bound.above + scan(sum, shared).before;
    for (int b = 0; mine && b < kEach; ++b) {
      const Whole one = shared->bins[first - b];
      if (above < limit && limit <= above + one) shared->found[0] = first - b, shared->found[1] = above;
      above += one;
    }
    sync_block();
    bound.key = bound.key << width | static_cast<unsigned>(shared->found[0]);
    bound.above = shared->found[1];
  }
  return bound;
}

template <class T>
__global__ void __launch_bounds__(kThreads) sample_kernel(const SampleArgs a) {
  Shared* const shared = shared_memory<Shared>();
  const T* const row = static_cast<const T*>(a.logits) + static_cast<int64_t>(blockIdx.x) * a.size;
  float highest = -kInfinity;
  for (int64_t i = static_cast<int64_t>(threadIdx.x) * kVector<T>; i < a.size; i += kThreads * kVector<T>) {
    const Vector<T> x = load_vector(row, i, a.size);
#pragma unroll
    for (int j = 0; j < kVector<T>; ++j) {
      const float v = to_float(x.at[j]);
      if (i + j < a.size) highest = fmaxf(highest, v == v ? v : kInfinity);
    }
  }
  highest = reduce_lanes<32>(highest, Max());
  if (threadIdx.x % 32 == 0) shared->tops[threadIdx.x / 32] = highest;
  sync_block();
  for (int warp = 0; warp < kThreads / 32; ++warp) highest = fmaxf(highest, shared->tops[warp]);
  if (fabsf(highest) == kInfinity) {
    if (threadIdx.x == 0) a.tokens[blockIdx.x] = -1;
    return;
  }

  unsigned key = 0;  // tokens above it stay, and of its equals the first `room`
  Whole room = static_cast<Whole>(a.size);
  if (a.top_k < a.size) {
    const Whole k = static_cast<Whole>(a.top_k);
    const Bound bound = select(a, row, highest, k, shared, [](float) { return Whole{1}; });
    key = bound.key, room = k - bound.above;
  }
  if (a.top_p < 1.0) {
    Whole sum = 0;
    each_element(a, row, highest, [&](int64_t, float l) {
      if (key_of(l) > key) sum += weight_of(l);
    });
    const Whole total = scan(sum, shared).total + (key > 0 ? room * weight_of(of_key(key)) : 0);
    const Whole limit = static_cast<Whole>(ceil(a.top_p * static_cast<double>(total)));
    const Bound bound = select(a, row, highest, limit < total ? limit : total, shared, weight_of);
    const Whole one = weight_of(of_key(bound.key));
    const Whole wanted = ((limit < total ? limit : total) - bound.above + one - 1) / one;
    if (bound.key > key || wanted < room) key = bound.key, room = wanted;
  }

  // In the order of ids: a thread has a piece of the row.
  const int64_t vectors = (a.size + kVector<T> - 1) / kVector<T>, each = (vectors + kThreads - 1) / kThreads;
  const int64_t begin = threadIdx.x * each * kVector<T>, end = begin + each * kVector<T>;
  Whole equals = 0;
  for (int64_t i = begin; i < end && i < a.size; i += kVector<T>)
    each_of(a, row, i, highest, [&](int64_t, float l) { equals += key_of(l) == key; });
  const Whole rank = scan(equals, shared).before;
  const auto walk = [&](const auto& f) {  // f(id, weight) of the tokens that stay
    Whole before = rank;
    for (int64_t i = begin; i < end && i < a.size; i += kVector<T>)
      each_of(a, row, i, highest, [&](int64_t id, float l) {
        const unsigned k = key_of(l);
        const bool stays = k > key || (k == key && before < room);
        before += k == key;
        if (stays && l >= a.lowest) f(id, weight_of(l));
      });
  };
  Whole sum = 0;
  walk([&](int64_t, Whole weight) { sum += weight; });
  const Sums sums = scan(sum, shared);
  Whole target = static_cast<Whole>(a.uniforms[blockIdx.x] * static_cast<double>(sums.total)) + 1;
  if (target > sums.total) target = sums.total;
  if (sums.before >= target || target > sums.before + sum) return;
  Whole cumulative = sums.before;
  walk([&](int64_t id, Whole weight) {
    if (cumulative < target && target <= cumulative + weight) a.tokens[blockIdx.x] = id;
    cumulative += weight;
  });
}

}  // namespace

cudaError_t sample(const SampleArgs& args, int64_t rows, cudaStream_t stream) {
  return with_dtype(args.dtype, [&](auto element) {
    return launch(sample_kernel<decltype(element)>, dim3(static_cast<unsigned>(rows)), kThreads,
                  sizeof(Shared), stream, args);
  });
}

}  // namespace llmcli::cuda
