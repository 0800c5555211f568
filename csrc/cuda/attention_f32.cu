// Attention in float32 on plain cores: 16 rows to a block of 128 threads. A thread has a key's scores with
// all rows, then a column or two of the weighted sums.
#include "attention.h"

namespace llmcli::cuda {
namespace {

constexpr int kThreads = kKeys, kRows = 16, kDepth = 32, kColumns = 2;

struct Shared {
  float keys[kKeys][kDepth + 1];  // no two keys of a warp in one bank
  float queries[kRows][kDepth];
  float weights[kRows][kKeys];
  Running running[kRows];
  int limits[kRows];
};

__global__ void __launch_bounds__(kThreads, 2)
    attention_f32_kernel(const AttentionArgs a, const int64_t tiles) {
  Shared& shared = *shared_memory<Shared>();
  const int64_t heads = a.B * a.G, tile = tiles - 1 - blockIdx.x / heads;
  const Head head(a, blockIdx.x % heads);
  const int64_t last = min((tile + 1) * kRows, a.T * (a.H / a.G)) - 1;
  const int blocks = blocks_below(QueryRow(a, head, last).limit), thread = static_cast<int>(threadIdx.x);
  const int D = static_cast<int>(a.D), warp = thread / 32, lane = thread % 32;
  const float *const k = head.k<float>(a), *const v = head.v<float>(a);
  const auto row_of = [&](int row) { return QueryRow(a, head, tile * kRows + row); };
  if (thread < kRows) shared.running[thread] = Running(), shared.limits[thread] = row_of(thread).limit;

  float o[kColumns][kRows] = {};
  for (int block = 0; block < blocks; ++block) {
    const int64_t first = int64_t{block} * kKeys;
    float s[kRows] = {};
    for (int depth = 0; depth < D; depth += kDepth) {
      sync_block();  // the tiles before have been read
      for (int i = thread; i < (kKeys + kRows) * kDepth; i += kThreads) {
        const int row = i / kDepth, d = depth + i % kDepth;
        if (row < kKeys) {
          shared.keys[row][i % kDepth] =
              first + row < head.keys && d < D ? k[(first + row) * a.k_s + d] : 0.0f;
        } else {
          const QueryRow query = row_of(row - kKeys);
          shared.queries[row - kKeys][i % kDepth] = query.there && d < D ? query.q<float>(a, head)[d] : 0.0f;
        }
      }
      sync_block();
      for (int d = 0; d < kDepth; ++d)
#pragma unroll
        for (int row = 0; row < kRows; ++row)
          s[row] = fmaf(shared.queries[row][d], shared.keys[thread][d], s[row]);
    }
#pragma unroll
    for (int row = 0; row < kRows; ++row)
      shared.weights[row][thread] =
          score_of(a, head, tile * kRows + row, shared.limits[row], block * kKeys + thread, s[row]);
    sync_block();
    for (int row = warp * 4; row < warp * 4 + 4; ++row) {
      float* const weights = shared.weights[row];
      float maximum = -kInfinity, sum = 0.0f;
      for (int key = lane; key < kKeys; key += 32) maximum = fmaxf(maximum, weights[key]);
      maximum = reduce_lanes<32>(maximum, Max());
      for (int key = lane; key < kKeys; key += 32) {
        weights[key] = exp2_fast(weights[key] - shift_of(maximum));
        sum += weights[key];
      }
      sum = reduce_lanes<32>(sum, Sum());
      if (lane == 0) shared.running[row].merge(maximum, sum);
    }
    sync_block();
    const int64_t end = min(int64_t{kKeys}, head.keys - first);
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      const int column = c * kThreads + thread;
      if (column >= D) continue;
      float sums[kRows] = {};
      for (int key = 0; key < end; ++key) {
        const float x = v[(first + key) * a.v_s + column];
#pragma unroll
        for (int row = 0; row < kRows; ++row) {
          // Zero times what is not finite must not reach a row that does not see the key.
          const float weight = shared.weights[row][key];
          if (weight != 0.0f || shared.limits[row] > first + key) sums[row] = fmaf(weight, x, sums[row]);
        }
      }
#pragma unroll
      for (int row = 0; row < kRows; ++row) o[c][row] = shared.running[row].merged(o[c][row], sums[row]);
    }
  }
  sync_block();
#pragma unroll
  for (int row = 0; row < kRows; ++row) {
    const QueryRow query = row_of(row);
    if (!query.there) continue;
    const Running& running = shared.running[row];
    if (thread == 0) *query.lse(a, head) = running.lse();
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      const int column = c * kThreads + thread;
      if (column < D) query.out<float>(a, head)[column] = o[c][row] * running.inverse();
    }
  }
}

}  // namespace

cudaError_t attention_f32(const AttentionArgs& a, cudaStream_t stream) {
  const int64_t tiles = (a.T * (a.H / a.G) + kRows - 1) / kRows;
  return launch(attention_f32_kernel, dim3(static_cast<unsigned>(tiles * a.B * a.G)), kThreads,
                sizeof(Shared), stream, a, tiles);
}

}  // namespace llmcli::cuda
