// Gradients of attention in float32 on plain cores: 16 items of its own side to a block of 128 threads. A
// thread has one of the other side's items, its scores with all 16 and their gradients, then a column or two
// of the weighted sums.
#include "attention_backward.h"

namespace llmcli::cuda {
namespace {

constexpr int kThreads = 128, kOwn = 16, kDepth = 16, kColumns = 2;

struct Shared {
  float others[2][kThreads][kDepth + 1];  // no two items of a warp in one bank
  float own[2][kOwn][kDepth];
  float weights[2][kOwn][kThreads];  // of the scores' factors ds, of the gradients' p
  const float* rows[2][kThreads];    // of the other side: null behind its last
  int limits[kThreads];              // of rows
};

template <bool kOfKeys>
__global__ void __launch_bounds__(kThreads, 2)
    attention_backward_f32_kernel(const AttentionBackwardArgs a, const int64_t tiles) {
  Shared& shared = *shared_memory<Shared>();
  const int64_t heads = a.B * a.G, number = blockIdx.x % heads, turn = blockIdx.x / heads;
  const int64_t first = (kOfKeys ? turn : tiles - 1 - turn) * kOwn, rows = a.T * (a.H / a.G);
  const Head head(a, number);
  const Sides<float, kOfKeys> sides(a, head, first, kOwn);
  const RowStatistics* const of_rows = statistics_of(a, number);
  const int thread = static_cast<int>(threadIdx.x), D = static_cast<int>(a.D);

  float sums[2][kColumns][kOwn] = {};
  for (int64_t from = sides.begin / kThreads * kThreads; from < sides.end; from += kThreads) {
    sync_block();  // the tile before has been read
    shared.rows[0][thread] = sides.other.score(from + thread);
    shared.rows[1][thread] = sides.other.gradient(from + thread);
    const int64_t row = kOfKeys ? from + thread : first + thread;
    shared.limits[thread] = row < rows ? of_rows[row].limit : 0;
    sync_block();
    float s[kOwn] = {}, dp[kOwn] = {};
    for (int depth = 0; depth < D; depth += kDepth) {
      for (int i = thread; i < 2 * (kThreads + kOwn) * kDepth; i += kThreads) {
        const int which = i / ((kThreads + kOwn) * kDepth), item = i / kDepth % (kThreads + kOwn),
                  d = i % kDepth, own = item - kThreads;
        const float* const x = own < 0      ? shared.rows[which][item]
                               : which == 0 ? sides.own.score(first + own)
                                            : sides.own.gradient(first + own);
        const float value = x && depth + d < D ? x[depth + d] : 0.0f;
        if (own < 0)
          shared.others[which][item][d] = value;
        else
          shared.own[which][own][d] = value;
      }
      sync_block();
      for (int d = 0; d < kDepth; ++d)
#pragma unroll
        for (int own = 0; own < kOwn; ++own) {
          s[own] = fmaf(shared.own[0][own][d], shared.others[0][thread][d], s[own]);
          dp[own] = fmaf(shared.own[1][own][d], shared.others[1][thread][d], dp[own]);
        }
      sync_block();
    }
#pragma unroll
    for (int own = 0; own < kOwn; ++own)
      shared.weights[0][own][thread] = dp[own], shared.weights[1][own][thread] = s[own];
#pragma unroll 1
    for (int own = 0; own < kOwn; ++own) {
      const int64_t row = kOfKeys ? from + thread : first + own, key = kOfKeys ? first + own : from + thread;
      const RowStatistics of = row < rows ? of_rows[row] : RowStatistics{};
      weigh<kOfKeys>(a, head, row, static_cast<int>(key), of, false, shared.weights[1][own][thread],
                     shared.weights[0][own][thread]);
    }
    sync_block();
#pragma unroll
    for (int which = 0; which < (kOfKeys ? 2 : 1); ++which)
#pragma unroll
      for (int c = 0; c < kColumns; ++c) {
        const int column = c * kThreads + thread;
        if (column >= D) continue;
        for (int other = 0; other < kThreads && from + other < sides.end; ++other) {
          const float x = shared.rows[which][other][column];
#pragma unroll
          for (int own = 0; own < kOwn; ++own) {
            // Zero times what is not finite must not reach an item that does not see it.
            const float weight = shared.weights[which][own][other];
            const bool seen =
                kOfKeys ? first + own < shared.limits[other] : from + other < shared.limits[own];
            if (weight != 0.0f || seen) sums[which][c][own] = fmaf(weight, x, sums[which][c][own]);
          }
        }
      }
  }
#pragma unroll
  for (int own = 0; own < kOwn; ++own) {
    const int64_t item = first + own;
    if (item >= (kOfKeys ? a.S : rows)) continue;
    const int64_t to = kOfKeys ? offset_of_key(a, head, item) : offset_of_row(a, head, item);
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      const int column = c * kThreads + thread;
      if (column >= D) continue;
      static_cast<float*>(kOfKeys ? a.dk : a.dq)[to + column] = sums[0][c][own] * a.scale;
      if (kOfKeys) static_cast<float*>(a.dv)[to + column] = sums[1][c][own];
    }
  }
}

template <bool kOfKeys>
cudaError_t start(const AttentionBackwardArgs& a, cudaStream_t stream) {
  const int64_t tiles = ((kOfKeys ? a.S : a.T * (a.H / a.G)) + kOwn - 1) / kOwn, blocks = tiles * a.B * a.G;
  if (blocks == 0) return cudaSuccess;
  return launch(attention_backward_f32_kernel<kOfKeys>, dim3(static_cast<unsigned>(blocks)), kThreads,
                sizeof(Shared), stream, a, tiles);
}

}  // namespace

cudaError_t attention_backward_f32(const AttentionBackwardArgs& a, cudaStream_t stream) {
  const cudaError_t error = start<false>(a, stream);
  return error != cudaSuccess ? error : start<true>(a, stream);
}

}  // namespace llmcli::cuda
