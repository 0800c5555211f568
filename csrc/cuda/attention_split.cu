// Attention of few rows over many keys, in bfloat16 and float16: decoding. Four warps share 16 rows and one
// block of keys, of which each has the scores of a quarter and then some columns of the weighted sums; a
// second kernel merges the blocks of a row in order. The products, sums and merges are those of attention.cu,
// bit for bit. Traffic: keys and values once, and per block (D + 2) floats of each row, written and read.
#include "attention_tile.h"

namespace llmcli::cuda {
namespace {

constexpr int kThreads = 128, kRows = 16, kWarps = kThreads / 32;

template <int kD>
struct Plan {
  static constexpr size_t kWeights = Tile<kKeys>::bytes(kRows);
  static constexpr size_t kStatistics = sizeof(float) * (kWarps * kRows + kWarps * 32 * 2);
  static constexpr size_t kBytes =
      2 * Tile<kD>::bytes(kKeys) + Tile<kD>::bytes(kRows) + kWeights + kStatistics;
};

template <class T, int kD>
__global__ void __launch_bounds__(kThreads, 2)
    attention_split_kernel(const AttentionArgs a, const int64_t blocks, const bool vectors) {
  using Rows = Tile<kD>;
  const Head head(a, blockIdx.x / blocks);
  const int block = static_cast<int>(blockIdx.x % blocks), count = static_cast<int>(a.T * (a.H / a.G));
  if (block >= blocks_below(QueryRow(a, head, count - 1).limit)) return;
  T* const keys = shared_memory<T>();
  T* const values = keys + kKeys * Rows::kStride;
  T* const queries = values + kKeys * Rows::kStride;
  T* const weights = queries + kRows * Rows::kStride;
  float* const maxima = reinterpret_cast<float*>(weights + kRows * Tile<kKeys>::kStride);  // (kWarps, kRows)
  float* const parts = maxima + kWarps * kRows;                                            // (kWarps, 32, 2)

  Rows::template load<kRows, kThreads>(queries, static_cast<int>(a.D), vectors, static_cast<const T*>(a.q),
                                       [&](int row) {
                                         const QueryRow query(a, head, row);
                                         return query.there ? query.q<T>(a, head) : nullptr;
                                       });
  Rows::template load_keys<kThreads>(keys, a, head, vectors, head.k<T>(a), a.k_s, block);
  copy_commit();
  Rows::template load_keys<kThreads>(values, a, head, vectors, head.v<T>(a), a.v_s, block);
  copy_commit();
  copy_wait<1>();
  sync_block();

  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int row = lane / 4;  // and the one 8 further down
  const int limits[2] = {QueryRow(a, head, row).limit, QueryRow(a, head, row + 8).limit};
  constexpr int kQuarter = kChunks / kWarps;
  float s[kQuarter][4] = {};
#pragma unroll
  for (int n = 0; n < kQuarter / 2; ++n)
    Rows::multiply_keys(
        keys, warp * kQuarter / 2 + n, [&](int k, uint32_t (&x)[4]) { Rows::operand_a(queries, k, x); },
        *reinterpret_cast<float (*)[2][4]>(&s[2 * n]));
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float maximum = -kInfinity;
#pragma unroll
    for (int n = 0; n < kQuarter; ++n)
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const int key = block * kKeys + (warp * kQuarter + n) * 8 + lane % 4 * 2 + j;
        float& x = s[n][half * 2 + j];
        x = score_of(a, head, row + 8 * half, limits[half], key, x);
        maximum = fmaxf(maximum, x);
      }
    maximum = reduce_lanes<4>(maximum, Max());
    if (lane % 4 == 0) maxima[warp * kRows + row + 8 * half] = maximum;
  }
  sync_block();
  float maximum[2], sum[2] = {0.0f, 0.0f};
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    maximum[half] = -kInfinity;
    for (int w = 0; w < kWarps; ++w) maximum[half] = fmaxf(maximum[half], maxima[w * kRows + row + 8 * half]);
    const float shift = shift_of(maximum[half]);
    float part = 0.0f;
#pragma unroll
    for (int n = 0; n < kQuarter; ++n) {
      const float x = exp2_fast(s[n][half * 2] - shift), y = exp2_fast(s[n][half * 2 + 1] - shift);
      part += x + y;
      const int key = (warp * kQuarter + n) * 8 + lane % 4 * 2;
      *reinterpret_cast<uint32_t*>(weights + (row + 8 * half) * Tile<kKeys>::kStride + key) = pack<T>(x, y);
    }
    parts[(warp * 32 + lane) * 2 + half] = part;
  }
  copy_wait<0>();
  sync_block();  // the values are there, and the weights of all warps
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    for (int w = 0; w < kWarps; ++w) sum[half] += parts[(w * 32 + lane) * 2 + half];
    sum[half] = reduce_lanes<4>(sum[half], Sum());
  }
  const bool infinite = QueryRow(a, head, 0).limit < min(int64_t{block + 1} * kKeys, head.keys) &&
                        Rows::template clear_infinite<kKeys, kThreads>(values);
  float* const partial = partial_of(a, blockIdx.x / blocks, block);
  for (int n = warp; n < kD / 16; n += kWarps) {
    float sums[2][4] = {};
    Rows::template multiply_values<kKeys>(
        values, n, [&](int k, uint32_t (&x)[4]) { Tile<kKeys>::operand_a(weights, k, x); }, sums);
#pragma unroll
    for (int m = 0; m < 2; ++m) {
      const int column = (2 * n + m) * 8 + lane % 4 * 2;
      if (infinite) Rows::template add_infinite<T>(a, head, block, column, limits, sums[m]);
#pragma unroll
      for (int i = 0; i < 4; ++i)
        if (row + i / 2 * 8 < count && column + i % 2 < a.D)
          partial[(row + i / 2 * 8) * a.D + column + i % 2] = sums[m][i];
    }
  }
  if (warp > 0 || lane % 4 > 0) return;
  for (int half = 0; half < 2; ++half) {
    if (row + 8 * half >= count) continue;
    float* const statistics = partial + count * a.D + (row + 8 * half) * 2;
    statistics[0] = maximum[half], statistics[1] = sum[half];
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) attention_merge_kernel(const AttentionArgs a) {
  const int64_t count = a.T * (a.H / a.G), number = blockIdx.x / count, row = blockIdx.x % count;
  const Head head(a, number);
  const QueryRow query(a, head, row);
  const int blocks = blocks_below(query.limit),
            column = min(static_cast<int>(threadIdx.x), static_cast<int>(a.D) - 1);
  Running running;
  float o = 0.0f;
#pragma unroll 8
  for (int block = 0; block < blocks; ++block) {
    const float* const partial = partial_of(a, number, block);
    const float* const statistics = partial + count * a.D + row * 2;
    const float sums = partial[row * a.D + column];
    running.merge(statistics[0], statistics[1]);
    o = running.merged(o, sums);
  }
  if (threadIdx.x == 0) *query.lse(a, head) = running.lse();
  if (threadIdx.x < a.D) from_float(o * running.inverse(), query.out<T>(a, head) + column);
}

template <class T>
cudaError_t start(const AttentionArgs& a, cudaStream_t stream) {
  const int64_t heads = a.B * a.G, blocks = cpu::attention_blocks(a);
  const cudaError_t error = with_head_size(a.D, [&](auto size) {
    constexpr int kD = decltype(size)::kD < 128 ? decltype(size)::kD : 128;
    return launch(attention_split_kernel<T, kD>, dim3(static_cast<unsigned>(heads * blocks)), kThreads,
                  Plan<kD>::kBytes, stream, a, blocks, in_vectors<T>(a));
  });
  if (error != cudaSuccess) return error;
  return launch(attention_merge_kernel<T>, dim3(static_cast<unsigned>(heads * a.T * (a.H / a.G))), kThreads,
                0, stream, a);
}

}  // namespace

bool attention_splits(const cpu::AttentionArgs& a) {
  return a.dtype != cpu::DType::f32 && a.D <= 128 && a.T * (a.H / a.G) <= kRows && a.S > kKeys;
}
int64_t attention_partials(const cpu::AttentionArgs& a) {
  return a.B * a.G * cpu::attention_blocks(a) * a.T * (a.H / a.G) * (a.D + 2);
}

cudaError_t attention_split(const cpu::AttentionArgs& args, cudaStream_t stream) {
  return args.dtype == cpu::DType::bf16 ? start<bf16>(args, stream) : start<f16>(args, stream);
}

}  // namespace llmcli::cuda
