// The roles of a block of threads that attends on sm_90a (attention_sm90.cu): one warp fetches keys and
// values ahead, three more clean values that not every row sees, and two warpgroups of 64 rows each take
// turns on the tensor cores. Every sum has the order of attention.cu.
#pragma once
#include "attention_tile.h"

#if defined(__CUDACC__)
#include "ptx_sm90.h"
#else
#include <emulated_ptx_sm90.h>
#endif

namespace llmcli::cuda::sm90 {

constexpr int kGroup = 128;  // threads of a warpgroup
constexpr int kConsumers = 2, kRows = 64 * kConsumers, kThreads = kGroup * (1 + kConsumers), kStages = 2;
constexpr int kPartial = 2;  // at most so many blocks are seen by some rows of a tile and not by all

// Tiles are columns of 64 side by side, each (rows, 64): what a box brings and a descriptor describes.
template <int kD>
struct Plan {
  static constexpr int kKeyTile = kKeys * kD, kQueryTile = kRows * kD;  // elements
  static constexpr size_t kAlign = 1024;
  static constexpr size_t kTiles = (kQueryTile + 2 * kStages * kKeyTile) * size_t{2};
};
struct Signals {
  Barrier keys_full[kStages], keys_empty[kStages], values_full[kStages], values_empty[kStages];
  Barrier uncleaned[kPartial];
  int infinite[kPartial];
};
template <int kD>
constexpr size_t kBytes = Plan<kD>::kAlign + Plan<kD>::kTiles + sizeof(Signals);

// Other GPUs, which are never offered it, have an empty kernel.
#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define LLMCLI_ON_SM90
#endif

#if defined(LLMCLI_ON_SM90)
constexpr int kCleaners = kGroup - 32;
// A thread's registers: those of a launch of kThreads, 168 for each, dealt out anew.
constexpr int kProducerRegisters = 40, kConsumerRegisters = 232;
// Barriers of threads, by number.
constexpr int kTurn = 1, kQueriesThere = kTurn + kConsumers, kCleaned = kQueriesThere + kConsumers;

template <int kD>
constexpr int kHalves = kD / 64;  // columns of a tile, 64 wide

// What the roles of a block of threads know of their tile.
template <class T, int kD>
struct Work {
  using P = Plan<kD>;
  const AttentionArgs& a;
  const Head head;
  const int64_t first_row;
  const int least;  // keys that its first row sees; the others see as many or more
  int blocks;
  T *queries, *keys, *values;
  Signals* signals;

  __device__ Work(const AttentionArgs& a, int64_t number, int64_t tile)
      : a(a), head(a, number), first_row(tile * kRows), least(QueryRow(a, head, first_row).limit) {
    const int64_t last = min(first_row + kRows, a.T * (a.H / a.G)) - 1;
    blocks = blocks_below(QueryRow(a, head, last).limit);
    unsigned char* const start = shared_memory<unsigned char>();
    queries = reinterpret_cast<T*>(start + (P::kAlign - shared_address(start) % P::kAlign) % P::kAlign);
    keys = queries + P::kQueryTile;
    values = keys + kStages * P::kKeyTile;
    signals = reinterpret_cast<Signals*>(values + kStages * P::kKeyTile);
  }
  // Blocks from here on hold keys that not every row sees.
  __device__ int first_partial() const {
    return least >= static_cast<int>(a.S) ? blocks : min(least / kKeys, blocks);
  }
};

template <class T, int kD>
__device__ void produce(const Work<T, kD>& work, const TensorMap& k_map, const TensorMap& v_map) {
  using P = Plan<kD>;
  const int partial = work.first_partial();
  const auto fetch = [&](const TensorMap& map, T* tiles, Barrier* full, Barrier* empty, int block) {
    T* const tile = tiles + block % kStages * P::kKeyTile;
    empty->wait((block / kStages & 1) ^ 1);
    full->arrive_and_expect(P::kKeyTile * 2);
#pragma unroll
    for (int half = 0; half < kHalves<kD>; ++half)
      copy_box(tile + half * kKeys * 64, map, half * 64, block * kKeys, static_cast<int>(work.head.g),
               static_cast<int>(work.head.b), full);
  };
  const auto fetch_keys = [&](int block) {
    const int stage = block % kStages;
    fetch(k_map, work.keys, &work.signals->keys_full[stage], &work.signals->keys_empty[stage], block);
  };
  if (work.blocks > 0) fetch_keys(0);
  for (int block = 0; block < work.blocks; ++block) {
    if (block + 1 < work.blocks) fetch_keys(block + 1);
    const int stage = block % kStages;
    Barrier* const full =
        block < partial ? &work.signals->values_full[stage] : &work.signals->uncleaned[block - partial];
    fetch(v_map, work.values, full, &work.signals->values_empty[stage], block);
  }
}

// Values that are not finite must not reach rows that do not see their keys, for which the weight is 0: they
// are zero in the tile, and Consumer::add_infinite adds them where they are seen.
template <class T, int kD>
__device__ void clean(const Work<T, kD>& work, int thread) {
  using P = Plan<kD>;
  const int partial = work.first_partial();
  for (int block = partial; block < work.blocks; ++block) {
    work.signals->uncleaned[block - partial].wait(0);
    T* const tile = work.values + block % kStages * P::kKeyTile;
    bool any = false;
    for (int i = thread * kVector<T>; i < P::kKeyTile; i += kCleaners * kVector<T>) {
      const Vector<T> x = *reinterpret_cast<const Vector<T>*>(tile + i);
#pragma unroll
      for (int j = 0; j < kVector<T>; ++j)
        if (!isfinite(to_float(x.at[j]))) any = true, tile[i + j] = T{};
    }
    if (any) work.signals->infinite[block - partial] = 1;
    writes_before_products();
    meet(kCleaned, kCleaners);
    if (thread == 0) work.signals->values_full[block % kStages].arrive();
  }
}

// A matrix of rows of 128 bytes, swizzled; eight rows, as instructions see it, lie 1024 bytes from the next
// eight (9.7.15.5.1).
__device__ inline uint64_t matrix_at(const void* x) {
  constexpr uint64_t kSwizzled = uint64_t{1} << 62, kEight = uint64_t{1024 >> 4} << 32,
                     kUnused = uint64_t{1} << 16;
  return kSwizzled | kEight | kUnused | (shared_address(x) & 0x3ffff) >> 4;
}
__device__ inline uint64_t matrix_step(int bytes) { return static_cast<uint64_t>(bytes >> 4); }

template <class T, int kD>
struct Consumer {
  using P = Plan<kD>;
  const Work<T, kD> work;
  const int group, lane;
  int64_t first_row;  // and the one 8 further down
  int limits[2];
  uint64_t queries;
  float s[64], sums[32], o[kD / 2];
  uint32_t p[kKeys / 16][4];
  Running running[2];
  float maximum[2], sum[2];

  __device__ Consumer(const Work<T, kD>& work, int group, int thread)
      : work(work), group(group), lane(thread % 32), o() {
    const int row = group * 64 + thread / 32 * 16 + lane / 4;
    first_row = work.first_row + row;
    for (int half = 0; half < 2; ++half)
      limits[half] = QueryRow(work.a, work.head, first_row + 8 * half).limit;
    queries = matrix_at(work.queries + group * 64 * 64);
  }

  __device__ void load_queries(int thread) {
    for (int i = thread; i < 64 * (kD / 8); i += kGroup) {
      const int row = group * 64 + i / (kD / 8), chunk = i % (kD / 8);
      const QueryRow query(work.a, work.head, work.first_row + row);
      const bool there = query.there && chunk * 8 < work.a.D;
      T* const to = work.queries + (chunk / 8 * kRows + row) * 64 + ((chunk ^ row) % 8) * 8;
      copy_async(to,
                 there ? query.template q<T>(work.a, work.head) + chunk * 8 : static_cast<const T*>(work.a.q),
                 there);
    }
    copy_commit();
    copy_wait<0>();
    writes_before_products();
    meet(kQueriesThere + group, kGroup);
  }

  // The tensor cores are taken in turns, as many by one warpgroup as by the other.
  __device__ void take_turn() { meet(kTurn + group, 2 * kGroup); }
  __device__ void pass_turn() { be_counted(kTurn + 1 - group, 2 * kGroup); }

  __device__ void begin_scores(int block) {
    const uint64_t keys = matrix_at(work.keys + block % kStages * P::kKeyTile);
#pragma unroll
    for (int k = 0; k < kD / 16; ++k)
      multiply_rows<T>(queries + matrix_step(k / 4 * kRows * 128 + k % 4 * 32),
                       keys + matrix_step(k / 4 * kKeys * 128 + k % 4 * 32), k > 0, s);
    products_commit();
  }
  __device__ void begin_sums(int block, int half) {
    const uint64_t values = matrix_at(work.values + block % kStages * P::kKeyTile + half * kKeys * 64);
#pragma unroll
    for (int k = 0; k < kKeys / 16; ++k)
      multiply_columns<T>(p[k], values + matrix_step(k * 16 * 128), k > 0, sums);
    products_commit();
  }
  __device__ void release(Barrier* empty) {
    if (lane == 0) empty->arrive();
  }

  // Keys that a row does not see.
  __device__ void hide(int block, int half) {
#pragma unroll
    for (int n = 0; n < kChunks; ++n)
#pragma unroll
      for (int j = 0; j < 2; ++j)
        if (block * kKeys + n * 8 + lane % 4 * 2 + j >= limits[half]) s[n * 4 + half * 2 + j] = -kInfinity;
  }
  // Products become scores in base 2, and these weights; each as in attention.cu.
  __device__ void find_maxima(int block) {
    const bool all = work.least >= (block + 1) * kKeys;
    const float scale = work.a.scale * kLog2E;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      maximum[half] = -kInfinity;
#pragma unroll
      for (int n = 0; n < kChunks; ++n)
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          float& x = s[n * 4 + half * 2 + j];
          x = multiply_alone(x, scale);
        }
      if (!all) hide(block, half);
#pragma unroll
      for (int n = 0; n < kChunks; ++n)
        maximum[half] = fmaxf(maximum[half], fmaxf(s[n * 4 + half * 2], s[n * 4 + half * 2 + 1]));
      maximum[half] = reduce_lanes<4>(maximum[half], Max());
    }
  }
  __device__ void exponentiate() {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float shift = shift_of(maximum[half]);
      sum[half] = 0.0f;
#pragma unroll
      for (int quarter = 0; quarter < 4; ++quarter) {
        float part = 0.0f;
#pragma unroll
        for (int n = quarter * kChunks / 4; n < (quarter + 1) * kChunks / 4; ++n) {
          float &x = s[n * 4 + half * 2], &y = s[n * 4 + half * 2 + 1];
          x = exp2_fast(x - shift), y = exp2_fast(y - shift);
          part += x + y;
        }
        sum[half] += part;
      }
      sum[half] = reduce_lanes<4>(sum[half], Sum());
    }
  }
  __device__ void weigh() {
#pragma unroll
    for (int n = 0; n < kChunks; ++n)
#pragma unroll
      for (int half = 0; half < 2; ++half)
        p[n / 2][n % 2 * 2 + half] = pack<T>(s[n * 4 + half * 2], s[n * 4 + half * 2 + 1]);
#pragma unroll
    for (int half = 0; half < 2; ++half) running[half].merge(maximum[half], sum[half]);
  }
  __device__ void merge(int half) {
#pragma unroll
    for (int i = 0; i < 32; ++i) {
      float& y = o[half * 32 + i];
      y = running[i / 2 % 2].merged(y, sums[i]);
    }
  }
  // What clean() took out of the tiles.
  __device__ void add_infinite() {
    const int partial = work.first_partial();
    for (int block = partial; block < work.blocks; ++block) {
      if (!work.signals->infinite[block - partial]) continue;
#pragma unroll
      for (int n = 0; n < kD / 8; ++n)
        Tile<kD>::template add_infinite<T>(work.a, work.head, block, n * 8 + lane % 4 * 2, limits,
                                           *reinterpret_cast<float (*)[4]>(&o[n * 4]));
    }
  }

  // The weighted sums of a block, beside the scores of the next one if there are more.
  template <bool kMore>
  __device__ void step(int block) {
    Signals& signals = *work.signals;
    const int stage = block % kStages, next = (block + 1) % kStages;
    if constexpr (kMore) signals.keys_full[next].wait((block + 1) / kStages & 1);
    signals.values_full[stage].wait(block / kStages & 1);
    take_turn();
    settle(s), settle(sums), settle(p);
    products_begin();
    if constexpr (kMore) begin_scores(block + 1);
    begin_sums(block, 0);
    if (kMore || group == 0) pass_turn();
    if constexpr (kMore) {
      products_wait<1>();
      settle(s);
      release(&signals.keys_empty[next]);
      find_maxima(block + 1);
    }
    if constexpr (kHalves<kD> == 2) {
      products_wait<0>();
      settle(sums);
      merge(0);
      settle(sums);
      products_begin();
      begin_sums(block, 1);
    }
    if constexpr (kMore) exponentiate();
    products_wait<0>();
    settle(sums), settle(p);
    release(&signals.values_empty[stage]);
    merge(kHalves<kD> - 1);
    if constexpr (kMore) weigh();
  }

  __device__ void run() {
    if (work.blocks > 0) {
      if (group == 1) pass_turn();
      work.signals->keys_full[0].wait(0);
      take_turn();
      settle(s);
      products_begin();
      begin_scores(0);
      pass_turn();
      products_wait<0>();
      settle(s);
      release(&work.signals->keys_empty[0]);
      find_maxima(0);
      exponentiate();
      weigh();
      for (int block = 0; block + 1 < work.blocks; ++block) step<true>(block);
      step<false>(work.blocks - 1);
    }
    add_infinite();
    write();
  }

  __device__ void write() {
    const AttentionArgs& a = work.a;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const QueryRow row(a, work.head, first_row + 8 * half);
      if (!row.there) continue;
      T* const out = row.template out<T>(a, work.head);
      const float inverse = running[half].inverse();
      if (lane % 4 == 0) *row.lse(a, work.head) = running[half].lse();
#pragma unroll
      for (int n = 0; n < kD / 8; ++n) {
        const int column = n * 8 + lane % 4 * 2;
        if (column < a.D)
          *reinterpret_cast<uint32_t*>(out + column) =
              pack<T>(o[n * 4 + half * 2] * inverse, o[n * 4 + half * 2 + 1] * inverse);
      }
    }
  }
};

#endif  // LLMCLI_ON_SM90

}  // namespace llmcli::cuda::sm90
