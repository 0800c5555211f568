// Attention of many rows in bfloat16 and float16 (https://arxiv.org/abs/2307.08691): four warps of 16 rows
// each walk through the blocks of keys. The keys of the next block travel while this one's values are summed,
// the values while the keys are multiplied; queries stay in registers, but of heads above 128, whose keys and
// values also share one tile.
#include "attention_tile.h"

namespace llmcli::cuda {
namespace {

constexpr int kThreads = 128, kRows = 64;

template <int kD>
struct Plan {
  static constexpr bool kSmall = kD <= 128;
  static constexpr int kColumns = kSmall ? kD : 128, kParts = kD / kColumns;
  static constexpr size_t kBytes =
      kSmall ? 2 * Tile<kD>::bytes(kKeys) : Tile<kD>::bytes(kKeys) + Tile<kD>::bytes(kRows);
};

template <class T, int kD>
__global__ void __launch_bounds__(kThreads)
    attention_kernel(const AttentionArgs a, const int64_t tiles, const bool vectors) {
  using Rows = Tile<kD>;
  constexpr bool kSmall = Plan<kD>::kSmall;
  constexpr int kColumns = Plan<kD>::kColumns;
  T* const keys = shared_memory<T>();
  T* const second = keys + kKeys * Rows::kStride;
  T* const values = kSmall ? second : keys;

  // Tiles that see most begin first.
  const int64_t heads = a.B * a.G, number = blockIdx.x % heads, tile = tiles - 1 - blockIdx.x / heads;
  const Head head(a, number);
  const int64_t last = min((tile + 1) * kRows, a.T * (a.H / a.G)) - 1;
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t first_row = tile * kRows + warp * 16 + lane / 4;
  const int limits[2] = {QueryRow(a, head, first_row).limit, QueryRow(a, head, first_row + 8).limit};
  const int least = QueryRow(a, head, tile * kRows).limit,
            blocks = blocks_below(QueryRow(a, head, last).limit);

  Rows::template load<kRows, kThreads>(second, static_cast<int>(a.D), vectors, static_cast<const T*>(a.q),
                                       [&](int row) {
                                         const QueryRow query(a, head, tile * kRows + row);
                                         return query.there ? query.q<T>(a, head) : nullptr;
                                       });
  copy_commit();
  if (blocks > 0) Rows::template load_keys<kThreads>(keys, a, head, vectors, head.k<T>(a), a.k_s, 0);
  copy_commit();
  copy_wait<1>();
  sync_block();
  uint32_t q[kSmall ? kD / 16 : 1][4];
  if constexpr (kSmall) {
#pragma unroll
    for (int k = 0; k < kD / 16; ++k) Rows::operand_a(second + warp * 16 * Rows::kStride, k, q[k]);
  }
  const auto query = [&](int k, uint32_t (&x)[4]) {
    if constexpr (kSmall) {
      for (int i = 0; i < 4; ++i) x[i] = q[k][i];
    } else {
      Rows::operand_a(second + warp * 16 * Rows::kStride, k, x);
    }
  };

  const int first_column = static_cast<int>(blockIdx.y) * kColumns;
  float o[kColumns / 8][4] = {};
  Running running[2];
  for (int block = 0; block < blocks; ++block) {
    copy_wait<0>();
    sync_block();  // the keys are there, and the values, or the queries, before have been read
    if constexpr (kSmall)
      Rows::template load_keys<kThreads>(values, a, head, vectors, head.v<T>(a), a.v_s, block);
    copy_commit();

    float s[kChunks][4] = {};
#pragma unroll
    for (int n = 0; n < kChunks / 2; ++n)
      Rows::multiply_keys(keys, n, query, *reinterpret_cast<float (*)[2][4]>(&s[2 * n]));
    if constexpr (!kSmall) {
      sync_block();
      Rows::template load_keys<kThreads>(values, a, head, vectors, head.v<T>(a), a.v_s, block);
      copy_commit();
    }

    uint32_t p[kChunks][2];
    const bool all = least >= (block + 1) * kKeys && !a.bias && !(a.cap > 0.0f);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float maximum = -kInfinity, sum = 0.0f;
#pragma unroll
      for (int n = 0; n < kChunks; ++n)
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          float& x = s[n][half * 2 + j];
          const int key = block * kKeys + n * 8 + lane % 4 * 2 + j;
          x = all ? multiply_alone(x, a.scale * kLog2E)
                  : score_of(a, head, first_row + 8 * half, limits[half], key, x);
          maximum = fmaxf(maximum, x);
        }
      maximum = reduce_lanes<4>(maximum, Max());
      const float shift = shift_of(maximum);
#pragma unroll
      for (int quarter = 0; quarter < 4; ++quarter) {
        float part = 0.0f;
#pragma unroll
        for (int n = quarter * kChunks / 4; n < (quarter + 1) * kChunks / 4; ++n) {
          const float x = exp2_fast(s[n][half * 2] - shift), y = exp2_fast(s[n][half * 2 + 1] - shift);
          part += x + y;
          p[n][half] = pack<T>(x, y);
        }
        sum += part;
      }
      running[half].merge(maximum, reduce_lanes<4>(sum, Sum()));
    }

    copy_wait<0>();
    sync_block();  // the values are there, and the keys have been read
    const bool infinite = least < min(int64_t{block + 1} * kKeys, head.keys) &&
                          Rows::template clear_infinite<kKeys, kThreads>(values);
    if constexpr (kSmall) {
      if (block + 1 < blocks)
        Rows::template load_keys<kThreads>(keys, a, head, vectors, head.k<T>(a), a.k_s, block + 1);
      copy_commit();
    }
#pragma unroll
    for (int n = 0; n < kColumns / 16; ++n) {
      float sums[2][4] = {};
      Rows::template multiply_values<kKeys>(
          values + first_column, n,
          [&](int k, uint32_t (&x)[4]) {
            x[0] = p[2 * k][0], x[1] = p[2 * k][1], x[2] = p[2 * k + 1][0], x[3] = p[2 * k + 1][1];
          },
          sums);
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        if (infinite)
          Rows::template add_infinite<T>(a, head, block, first_column + (2 * n + m) * 8 + lane % 4 * 2,
                                         limits, sums[m]);
#pragma unroll
        for (int i = 0; i < 4; ++i) o[2 * n + m][i] = running[i / 2].merged(o[2 * n + m][i], sums[m][i]);
      }
    }
    if constexpr (!kSmall) {
      sync_block();
      if (block + 1 < blocks)
        Rows::template load_keys<kThreads>(keys, a, head, vectors, head.k<T>(a), a.k_s, block + 1);
      copy_commit();
    }
  }
  copy_wait<0>();

#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const QueryRow row(a, head, first_row + 8 * half);
    if (!row.there) continue;
    T* const out = row.out<T>(a, head);
    const float inverse = running[half].inverse();
    if (lane % 4 == 0 && first_column == 0) *row.lse(a, head) = running[half].lse();
#pragma unroll
    for (int n = 0; n < kColumns / 8; ++n)
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const int column = first_column + n * 8 + lane % 4 * 2 + j;
        if (column < a.D) from_float(o[n][half * 2 + j] * inverse, out + column);
      }
  }
}

template <class T>
cudaError_t start(const AttentionArgs& a, cudaStream_t stream) {
  const int64_t tiles = (a.T * (a.H / a.G) + kRows - 1) / kRows;
  return with_head_size(a.D, [&](auto size) {
    constexpr int kD = decltype(size)::kD;
    return launch(attention_kernel<T, kD>, dim3(static_cast<unsigned>(tiles * a.B * a.G), Plan<kD>::kParts),
                  kThreads, Plan<kD>::kBytes, stream, a, tiles, in_vectors<T>(a));
  });
}

}  // namespace

cudaError_t attention(const AttentionArgs& args, cudaStream_t stream) {
  if (attention_fits_sm90(args)) return attention_sm90(args, stream);
  switch (args.dtype) {
    case cpu::DType::bf16:
      return start<bf16>(args, stream);
    case cpu::DType::f16:
      return start<f16>(args, stream);
    default:
      return attention_f32(args, stream);
  }
}

}  // namespace llmcli::cuda
