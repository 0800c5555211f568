// Gradients of attention in bfloat16 and float16, on tensor cores: a warp has 16 items of its own side, and
// two tiles of the other side's items travel while two are multiplied. Scores lie as own items by others, so
// that weights and their gradients become factors of the second products without leaving their registers.
#include "attention_backward.h"

#include "attention_tile.h"

namespace llmcli::cuda {
namespace {

template <int kD, bool kOfKeys>
struct Plan {
  static constexpr int kWarps = kD <= 128 ? 4 : 3, kThreads = kWarps * 32, kOwn = kWarps * 16;
  static constexpr int kOthers = kD <= 64 ? 64 : kD <= 128 ? 32 : 16;
  static constexpr int kColumns = kOfKeys && kD > 128 ? 128 : kD, kParts = kD / kColumns;  // of the gradients
  static constexpr size_t kBytes =
      2 * Tile<kD>::bytes(kOwn) + 4 * Tile<kD>::bytes(kOthers) + 2 * kOthers * sizeof(RowStatistics);
};

// Adds weight * x where x is not finite and `seen(half, other)`; `x(other)` is a row, null behind the last.
// Those elements of the tile are zeros: zero times them would reach items that do not see them.
template <int kOthers, int kColumns, class T, class From, class Seen>
__device__ void add_infinite(const AttentionArgs& a, const uint32_t (&weights)[kOthers / 8][2], int column,
                             const From& x, const Seen& seen, float (&sums)[kColumns / 8][4]) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  uint32_t left[kOthers / 8][2];
#pragma unroll
  for (int i = 0; i < kOthers / 4; ++i) left[i / 2][i % 2] = weights[i / 2][i % 2];
#pragma unroll 1
  for (int step = 0; step < kOthers; ++step) {  // lanes take turns at the weights that the four of a row have
    const int turn = step % 8 / 2, other = step / 8 * 8 + (lane % 4 ^ turn) * 2 + step % 2;
    float weight[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const uint32_t pair = left[0][half];
      weight[half] = shuffle_xor(to_float(T{static_cast<uint16_t>(step % 2 ? pair >> 16 : pair)}), turn);
    }
    if (step % 8 == 7) {
#pragma unroll
      for (int i = 0; i + 2 < kOthers / 4; ++i) left[i / 2][i % 2] = left[i / 2 + 1][i % 2];
    }
    const T* const row = x(other);
    if (!row) continue;
#pragma unroll
    for (int i = 0; i < kColumns / 4; ++i) {
      const int at = column + i / 2 * 8 + lane % 4 * 2 + i % 2;
      const float value = at < a.D ? to_float(row[at]) : 0.0f;
      if (isfinite(value)) continue;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float& sum = sums[i / 2][half * 2 + i % 2];
        if (seen(half, other)) sum = fmaf(weight[half], value, sum);
      }
    }
  }
}

template <class T, int kD, bool kOfKeys>
__global__ void __launch_bounds__(Plan<kD, kOfKeys>::kThreads, 2)
    attention_backward_kernel(const AttentionBackwardArgs a, const int64_t tiles, const bool vectors) {
  using Rows = Tile<kD>;
  using Planned = Plan<kD, kOfKeys>;
  constexpr int kThreads = Planned::kThreads, kOwn = Planned::kOwn, kOthers = Planned::kOthers,
                kColumns = Planned::kColumns;
  T* const own_score = shared_memory<T>();
  T* const own_gradient = own_score + kOwn * Rows::kStride;
  T* const others = own_gradient + kOwn * Rows::kStride;  // two tiles, twice
  RowStatistics* const statistics = reinterpret_cast<RowStatistics*>(others + 4 * kOthers * Rows::kStride);

  // Tiles that meet most begin first.
  const int64_t heads = a.B * a.G, number = blockIdx.x % heads, turn = blockIdx.x / heads;
  const int64_t first = (kOfKeys ? turn : tiles - 1 - turn) * kOwn;
  const Head head(a, number);
  const Sides<T, kOfKeys> sides(a, head, first, kOwn);
  const RowStatistics* const of_rows = statistics_of(a, number);
  const int64_t rows = a.T * (a.H / a.G);
  const int D = static_cast<int>(a.D), warp = static_cast<int>(threadIdx.x) / 32,
            lane = static_cast<int>(threadIdx.x) % 32, mine = warp * 16 + lane / 4;  // and 8 further down

  Rows::template load<kOwn, kThreads>(own_score, D, vectors, static_cast<const T*>(a.q),
                                      [&](int i) { return sides.own.score(first + i); });
  Rows::template load<kOwn, kThreads>(own_gradient, D, vectors, static_cast<const T*>(a.q),
                                      [&](int i) { return sides.own.gradient(first + i); });
  const auto bring = [&](int64_t from, int stage) {
    T* const to = others + stage * 2 * kOthers * Rows::kStride;
    Rows::template load<kOthers, kThreads>(to, D, vectors, static_cast<const T*>(a.q),
                                           [&](int i) { return sides.other.score(from + i); });
    Rows::template load<kOthers, kThreads>(to + kOthers * Rows::kStride, D, vectors,
                                           static_cast<const T*>(a.q),
                                           [&](int i) { return sides.other.gradient(from + i); });
    if (kOfKeys && threadIdx.x < kOthers) {
      const int64_t row = from + threadIdx.x;
      copy_async(statistics + stage * kOthers + threadIdx.x, of_rows + (row < rows ? row : 0), row < rows);
    }
    copy_commit();
  };
  RowStatistics of[2] = {};  // the kernel over rows: its own
  if (!kOfKeys) {
#pragma unroll
    for (int half = 0; half < 2; ++half)
      if (first + mine + 8 * half < rows) of[half] = of_rows[first + mine + 8 * half];
  }

  const int first_column = static_cast<int>(blockIdx.y) * kColumns;
  float score_sums[kColumns / 8][4] = {}, gradient_sums[kOfKeys ? kColumns / 8 : 1][4] = {};
  const int64_t begin = sides.begin / kOthers * kOthers;
  int stage = 0;
  bring(begin, stage);
  for (int64_t from = begin; from < sides.end; from += kOthers, stage ^= 1) {
    T* const score = others + stage * 2 * kOthers * Rows::kStride;
    T* const gradient = score + kOthers * Rows::kStride;
    const RowStatistics* const of_others = statistics + stage * kOthers;
    copy_wait<0>();
    sync_block();  // this stage is there, and the other one has been read
    if (from + kOthers < sides.end) bring(from + kOthers, stage ^ 1);

    // With kOfKeys the rows are the others, and the keys its own.
    const int least = QueryRow(a, head, kOfKeys ? from : first).limit;
    const int64_t keys_end = kOfKeys ? first + kOwn : from + kOthers;
    const bool plain = least >= keys_end && !a.bias && !(a.cap > 0.0f);
    float s[kOthers / 8][4] = {}, dp[kOthers / 8][4] = {};
    const auto factor = [&](const T* tile) {
      return [=](int k, uint32_t (&x)[4]) { Rows::operand_a(tile + warp * 16 * Rows::kStride, k, x); };
    };
    Rows::multiply_keys(score, 0, factor(own_score), s);
    Rows::multiply_keys(gradient, 0, factor(own_gradient), dp);
    uint32_t p[kOthers / 8][2], ds[kOthers / 8][2];
#pragma unroll
    for (int n = 0; n < kOthers / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int other = n * 8 + lane % 4 * 2 + i % 2, own = mine + i / 2 * 8;
        if constexpr (kOfKeys)
          weigh<true>(a, head, from + other, static_cast<int>(first + own), of_others[other], plain, s[n][i],
                      dp[n][i]);
        else
          weigh<false>(a, head, first + own, static_cast<int>(from + other), of[i / 2], plain, s[n][i],
                       dp[n][i]);
      }
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        p[n][half] = pack<T>(s[n][half * 2], s[n][half * 2 + 1]);
        ds[n][half] = pack<T>(dp[n][half * 2], dp[n][half * 2 + 1]);
      }
    }

    bool infinite_score = false, infinite_gradient = false;
    if (least < min(keys_end, head.keys)) {
      sync_block();  // the tiles have been multiplied
      infinite_score = Rows::template clear_infinite<kOthers, kThreads>(score);
      if (kOfKeys) infinite_gradient = Rows::template clear_infinite<kOthers, kThreads>(gradient);
    }
    const auto weights = [](const uint32_t (&of)[kOthers / 8][2]) {
      return [&of](int k, uint32_t (&x)[4]) {
        x[0] = of[2 * k][0], x[1] = of[2 * k][1], x[2] = of[2 * k + 1][0], x[3] = of[2 * k + 1][1];
      };
    };
    const auto seen = [&](int half, int other) {
      return kOfKeys ? first + mine + half * 8 < of_others[other].limit : from + other < of[half].limit;
    };
#pragma unroll
    for (int n = 0; n < kColumns / 16; ++n) {
      Rows::template multiply_values<kOthers>(score + first_column, n, weights(ds),
                                              *reinterpret_cast<float (*)[2][4]>(&score_sums[2 * n]));
      if constexpr (kOfKeys)
        Rows::template multiply_values<kOthers>(gradient + first_column, n, weights(p),
                                                *reinterpret_cast<float (*)[2][4]>(&gradient_sums[2 * n]));
    }
    if (infinite_score)
      add_infinite<kOthers, kColumns, T>(
          a, ds, first_column, [&](int i) { return sides.other.score(from + i); }, seen, score_sums);
    if constexpr (kOfKeys)
      if (infinite_gradient)
        add_infinite<kOthers, kColumns, T>(
            a, p, first_column, [&](int i) { return sides.other.gradient(from + i); }, seen, gradient_sums);
  }
  copy_wait<0>();

#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int64_t own = first + mine + 8 * half;
    if (own >= (kOfKeys ? a.S : rows)) continue;
    const int64_t to = kOfKeys ? offset_of_key(a, head, own) : offset_of_row(a, head, own);
    const bool hidden = kOfKeys && own >= head.keys;
#pragma unroll
    for (int i = 0; i < kColumns / 4; ++i) {
      const int column = first_column + i / 2 * 8 + lane % 4 * 2 + i % 2;
      if (column >= a.D) continue;
      T* const result = static_cast<T*>(kOfKeys ? a.dk : a.dq) + to + column;
      from_float(hidden ? 0.0f : score_sums[i / 2][half * 2 + i % 2] * a.scale, result);
      if constexpr (kOfKeys)
        from_float(hidden ? 0.0f : gradient_sums[i / 2][half * 2 + i % 2],
                   static_cast<T*>(a.dv) + to + column);
    }
  }
}

template <class T, bool kOfKeys>
cudaError_t start(const AttentionBackwardArgs& a, cudaStream_t stream) {
  const bool vectors = in_vectors<T>(a) && begin_on_vectors<T>(a.grad, {a.grad_b, a.grad_t, a.grad_h});
  return with_head_size(a.D, [&](auto size) {
    using Planned = Plan<decltype(size)::kD, kOfKeys>;
    const int64_t items = kOfKeys ? a.S : a.T * (a.H / a.G);
    const int64_t tiles = (items + Planned::kOwn - 1) / Planned::kOwn;
    return launch(attention_backward_kernel<T, decltype(size)::kD, kOfKeys>,
                  dim3(static_cast<unsigned>(tiles * a.B * a.G), Planned::kParts), Planned::kThreads,
                  Planned::kBytes, stream, a, tiles, vectors);
  });
}

// Four rows to a block of four warps.
template <class T>
__global__ void __launch_bounds__(128)
    attention_statistics_kernel(const AttentionBackwardArgs a, const int64_t items) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t rows = a.T * (a.H / a.G), item = int64_t{blockIdx.x} * 4 + threadIdx.x / 32;
  if (item >= items) return;
  const Head head(a, item / rows);
  const QueryRow query(a, head, item % rows);
  const T *const grad = RowSide<T>{a, head}.gradient(item % rows), *const out = query.out<T>(a, head);
  float delta = 0.0f;
  for (int64_t i = lane * kVector<T>; i < a.D; i += 32 * kVector<T>) {
    const Vector<T> x = load_vector(grad, i, a.D), y = load_vector(out, i, a.D);
#pragma unroll
    for (int j = 0; j < kVector<T>; ++j) delta = fmaf(to_float(x.at[j]), to_float(y.at[j]), delta);
  }
  delta = reduce_lanes<32>(delta, Sum());
  if (lane > 0) return;
  constexpr float kDropped = 1.9259629911e-8f;  // of log2(e) by kLog2E
  const float lse = *query.lse(a, head), high = lse * kLog2E;
  const bool nothing = lse == -kInfinity;  // seen: its weights are zeros
  statistics_of(a, item / rows)[item % rows] = {
      nothing ? kInfinity : high, nothing ? 0.0f : fmaf(lse, kDropped, fmaf(lse, kLog2E, -high)), delta,
      query.limit};
}

}  // namespace

int64_t attention_backward_floats(const AttentionBackwardArgs& a) {
  return a.B * a.H * a.T * static_cast<int64_t>(sizeof(RowStatistics) / sizeof(float));
}

cudaError_t attention_backward(const AttentionBackwardArgs& args, cudaStream_t stream) {
  const int64_t rows = args.B * args.H * args.T;
  const auto with = [&](auto element) {
    using T = decltype(element);
    if (rows > 0) {
      const dim3 grid(static_cast<unsigned>((rows + 3) / 4));
      const cudaError_t error = launch(attention_statistics_kernel<T>, grid, 128, 0, stream, args, rows);
      if (error != cudaSuccess) return error;
    }
    if constexpr (sizeof(T) == 4) {
      return attention_backward_f32(args, stream);
    } else {
      const cudaError_t error = rows > 0 ? start<T, false>(args, stream) : cudaSuccess;
      return error != cudaSuccess || args.B * args.S == 0 ? error : start<T, true>(args, stream);
    }
  };
  return with_dtype(args.dtype, with);
}

}  // namespace llmcli::cuda
