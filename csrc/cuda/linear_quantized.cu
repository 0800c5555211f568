// Linear layers on weights of 8 or 4 bits: the arithmetic, the packed layout and the bits of
// cpu/linear_quantized.h. One kernel brings rows of x to eight bits; another multiplies up to 32 rows and a
// third, on tensor cores, more: a rule of speed alone, because sums of whole numbers are exact in any order.
//
// Few rows: a block has 16 columns of a panel and up to 8 rows; its half-warps take pieces of 32 inputs. A
// thread has a column, so that half a warp reads 64 bytes of each step and no thread needs another one's
// sums, which wait in shared memory as integers; then each group's becomes a float, and groups are added in
// rising order. Limit: K N (1 + 2 / 128) or K N (1 / 2 + 2 / 32) bytes once per 8 rows; the other blocks of
// rows, next in the grid, find them in the L2 cache. A thread's loads of a piece, 4 or 8, are under way
// together, for one row those of 4 pieces, and no barrier comes between pieces, up to kPieces of them.
#include "kernels.h"
#include "launch.h"
#include "warp.h"

namespace llmcli::cuda {
namespace {

constexpr int kThreads = 256, kColumns = 16, kHalves = kThreads / kColumns, kPiece = 32;
template <int kBits>
constexpr int64_t kGroup = cpu::quantized_group(kBits);
template <int kBits>
constexpr int64_t kUnit = cpu::quantized_unit(kBits);
template <int kBits>
constexpr int64_t kGroupBytes = cpu::kQuantizedPanel * (2 + kGroup<kBits> * kBits / 8);  // of a panel

// What follows from the number of inputs: groups, padded inputs, bytes of a row of q and of a panel.
struct Sizes {
  int64_t groups, padded, row, panel;
  Sizes(int64_t inputs, int bits)
      : groups(cpu::quantized_groups(inputs, bits)),
        padded(cpu::quantized_inputs(inputs, bits)),
        row(quantized_row(inputs)),
        panel(cpu::quantized_panel_bytes(inputs, bits)) {}
};

constexpr float kSmallestRow = 1e-30f;  // smaller ones count as zeros: 127 / max is finite

// A warp brings one group of one row to eight bits; in the last group also what lies behind the row, as
// zeros.
template <class T, int kBits>
__global__ void __launch_bounds__(kThreads)
    rows_to_bytes(const cpu::QuantizedLinearArgs a, const Sizes sizes) {
  constexpr int kEach = static_cast<int>(kGroup<kBits> / 32);
  const int64_t item = static_cast<int64_t>(blockIdx.x) * (kThreads / 32) + threadIdx.x / 32;
  if (item >= a.rows * sizes.groups) return;
  const int64_t row = item / sizes.groups, k = item % sizes.groups * kGroup<kBits> + threadIdx.x % 32 * kEach;
  float x[kEach], largest = 0.0f;
#pragma unroll
  for (int j = 0; j < kEach; ++j) {
    x[j] = k + j < a.inputs ? to_float(static_cast<const T*>(a.x)[row * a.inputs + k + j]) : 0.0f;
    const float size = fabsf(x[j]);
    largest = fmaxf(largest, size < kInfinity ? size : kInfinity);  // NaN, too
  }
  largest = reduce_lanes<32>(largest, Max());
  const bool finite = largest < kInfinity, used = finite && largest >= kSmallestRow;
  const float inverse = used ? 127.0f / largest : 0.0f;
  float sum = 0.0f;
#pragma unroll
  for (int j = 0; j < kEach; ++j) {
    const float q = used ? rintf(multiply_alone(x[j], inverse)) : 0.0f;
    sum += q;
    if (k + j < sizes.row) a.q[row * sizes.row + k + j] = static_cast<int8_t>(q);
  }
  sum = reduce_lanes<32>(sum, Sum());  // of whole numbers below 2^24: exact
  if (threadIdx.x % 32 != 0) return;
  a.scales[item] = used ? largest / 127.0f : finite ? 0.0f : kInfinity - kInfinity;
  a.starts[item] = (kBits == 8 ? -128 : -8) * static_cast<int32_t>(sum);
}

template <int kRows>
constexpr int kPieces = kRows == 8 ? 64 : 128;  // at a time: 32 KiB at most

// Sums of one piece for each row, from a thread's column of the panel.
template <int kBits, int kRows>
__device__ void piece_sums(const cpu::QuantizedLinearArgs& a, const Sizes& sizes, const uint8_t* panel,
                           int64_t column, int64_t row, int64_t piece, int* sums) {
  constexpr int kSteps = static_cast<int>(kPiece / kUnit<kBits>);
  const int64_t k = piece * kPiece, group = k / kGroup<kBits>, step = k % kGroup<kBits> / kUnit<kBits>;
  const uint32_t* const w = reinterpret_cast<const uint32_t*>(panel + group * kGroupBytes<kBits>) +
                            cpu::kQuantizedPanel / 2 + step * cpu::kQuantizedPanel + column;
  const int64_t left = sizes.padded - k;
  uint32_t u[kSteps];
#pragma unroll
  for (int s = 0; s < kSteps; ++s) u[s] = s * kUnit<kBits> < left ? w[s * cpu::kQuantizedPanel] : 0;
#pragma unroll 2
  for (int r = 0; r < kRows; ++r) {
    if (row + r >= a.rows) break;
    const Vector<uint32_t>* const q =
        reinterpret_cast<const Vector<uint32_t>*>(a.q + (row + r) * sizes.row + k);
    const Vector<uint32_t> x[2] = {q[0], q[1]};
    int sum = 0;
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      if constexpr (kBits == 8) {
        sum = dot_bytes(u[s], x[s / 4].at[s % 4], sum);
      } else {
        sum = dot_bytes(u[s] & 0x0f0f0f0f, x[s / 2].at[s % 2 * 2], sum);
        sum = dot_bytes(u[s] >> 4 & 0x0f0f0f0f, x[s / 2].at[s % 2 * 2 + 1], sum);
      }
    }
    sums[r * kColumns] = sum;
  }
}

template <class T>
__device__ void store_output(const cpu::QuantizedLinearArgs& a, int64_t row, int64_t column, float y) {
  if (a.bias) y += to_float(static_cast<const T*>(a.bias)[column]);
  if (a.wide) {
    static_cast<float*>(a.y)[row * a.outputs + column] = y;
  } else {
    from_float(y, static_cast<T*>(a.y) + row * a.outputs + column);
  }
}

__device__ void store_any(const cpu::QuantizedLinearArgs& a, int64_t row, int64_t column, float y) {
  switch (a.dtype) {
    case cpu::DType::f32:
      return store_output<float>(a, row, column, y);
    case cpu::DType::bf16:
      return store_output<bf16>(a, row, column, y);
    case cpu::DType::f16:
      return store_output<f16>(a, row, column, y);
  }
}

template <int kBits, int kRows>
__global__ void __launch_bounds__(kThreads)
    product(const cpu::QuantizedLinearArgs a, const Sizes sizes, const int64_t blocks) {
  constexpr int kPerGroup = static_cast<int>(kGroup<kBits> / kPiece);  // pieces
  // [piece][row][column]: integers, then in a group's first piece its float.
  int* const sums = shared_memory<int>();
  float* const floats = reinterpret_cast<float*>(sums);
  const int c = static_cast<int>(threadIdx.x) % kColumns, half = static_cast<int>(threadIdx.x) / kColumns;
  const int64_t column = blockIdx.x / blocks * kColumns + c, row = blockIdx.x % blocks * kRows;
  const int64_t pieces = sizes.row / kPiece;
  const uint8_t* const panel = a.w + column / cpu::kQuantizedPanel * sizes.panel;
  const int64_t in_panel = column % cpu::kQuantizedPanel;
  float y = 0.0f;  // of row `half`, in the threads of the first kRows halves
  for (int64_t first = 0; first < pieces; first += kPieces<kRows>) {
    const int64_t count = pieces - first < kPieces<kRows> ? pieces - first : kPieces<kRows>;
    sync_block();  // the sums before have been read
#pragma unroll(kRows == 1 ? 4 : 1)
    for (int64_t p = half; p < count; p += kHalves)
      piece_sums<kBits, kRows>(a, sizes, panel, in_panel, row, first + p, sums + p * kRows * kColumns + c);
    sync_block();
    const int some = static_cast<int>((count + kPerGroup - 1) / kPerGroup);
    for (int item = half; item < some * kRows; item += kHalves) {
      const int g = item / kRows, r = item % kRows;
      if (row + r >= a.rows) continue;
      const int64_t group = first / kPerGroup + g, of_row = (row + r) * sizes.groups + group;
      int sum = a.starts[of_row];
      for (int p = g * kPerGroup; p < (g + 1) * kPerGroup && p < count; ++p)
        sum += sums[(p * kRows + r) * kColumns + c];
      const cpu::bf16 scale =
          reinterpret_cast<const cpu::bf16*>(panel + group * kGroupBytes<kBits>)[in_panel];
      floats[(g * kPerGroup * kRows + r) * kColumns + c] =
          multiply_alone(static_cast<float>(sum), multiply_alone(a.scales[of_row], to_float(scale)));
    }
    sync_block();
    if (half < kRows && row + half < a.rows) {
#pragma unroll 4
      for (int g = 0; g < some; ++g) y = add_alone(y, floats[(g * kPerGroup * kRows + half) * kColumns + c]);
    }
  }
  if (half >= kRows || row + half >= a.rows || column >= a.outputs) return;
  store_any(a, row + half, column, y);
}

// Many rows: a warp multiplies 32 of them by a panel on tensor cores, group by group, with no shared memory.
// The order of inputs within a product is free, and so is that of columns among its tiles of 8: lane 4 n + i
// takes the quads 2 i and 2 i + 1 of 32 inputs, and tile j of each half of the panel has its columns 4 n + j.
// So 8 bytes of q and 16 bytes of weights lie together, and a lane's sums are of 4 consecutive columns.
constexpr int kWarps = 4, kTileRows = 32;
struct alignas(8) Quads {
  uint32_t low, high;
};

template <int kBits>
__global__ void __launch_bounds__(32 * kWarps)
    tensor_product(const cpu::QuantizedLinearArgs a, const Sizes sizes, const int64_t blocks) {
  constexpr int kHalfPanel = cpu::kQuantizedPanel / 2;
  const int lane = static_cast<int>(threadIdx.x) % 32, n = lane / 4, i = lane % 4;
  const int64_t panel = blockIdx.x / blocks;
  const int64_t row = (blockIdx.x % blocks * kWarps + threadIdx.x / 32) * kTileRows;
  if (row >= a.rows) return;
  int64_t rows[4];  // of the sums: 0 and 1 of the upper tile, 2 and 3 of the lower one
#pragma unroll
  for (int r = 0; r < 4; ++r) rows[r] = row + n + 8 * r < a.rows ? row + n + 8 * r : a.rows - 1;
  float y[2][2][4][4] = {};  // [half of the panel][tile of rows][j][as in a fragment]
  const uint8_t* group = a.w + panel * sizes.panel;
  for (int64_t g = 0; g < sizes.groups; ++g, group += kGroupBytes<kBits>) {
    const uint32_t* const w = reinterpret_cast<const uint32_t*>(group) + kHalfPanel;
    int starts[4];
    float scales[4];
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      starts[r] = a.starts[rows[r] * sizes.groups + g];
      scales[r] = a.scales[rows[r] * sizes.groups + g];
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      int sums[2][4][4];
#pragma unroll
      for (int t = 0; t < 2; ++t)
#pragma unroll
        for (int j = 0; j < 4; ++j)
#pragma unroll
          for (int e = 0; e < 4; ++e) sums[t][j][e] = starts[2 * t + e / 2];
#pragma unroll 2
      for (int64_t k = 0; k < kGroup<kBits> && g * kGroup<kBits> + k < sizes.padded; k += kPiece) {
        const int64_t at = g * kGroup<kBits> + k;
        uint32_t x[2][4];
#pragma unroll
        for (int r = 0; r < 4; ++r) {
          const Quads q = *reinterpret_cast<const Quads*>(a.q + rows[r] * sizes.row + at + 8 * i);
          x[r / 2][r % 2] = q.low, x[r / 2][2 + r % 2] = q.high;
        }
        Vector<uint32_t> u[2]{};
        constexpr int kWords = 8 / kUnit<kBits>;  // of a lane: two quads of 8 bits, or both in one of 4
#pragma unroll
        for (int p = 0; p < kWords; ++p) {
          const int64_t step = k / kUnit<kBits> + kWords * i + p;
          if (at + 8 * i + 4 * p < sizes.padded)
            u[p] = *reinterpret_cast<const Vector<uint32_t>*>(w + step * cpu::kQuantizedPanel +
                                                              half * kHalfPanel + 4 * n);
        }
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const uint32_t low = kBits == 8 ? u[0].at[j] : u[0].at[j] & 0x0f0f0f0f,
                         high = kBits == 8 ? u[1].at[j] : u[0].at[j] >> 4 & 0x0f0f0f0f;
          multiply_bytes(x[0], low, high, sums[0][j]);
          multiply_bytes(x[1], low, high, sums[1][j]);
        }
      }
      const cpu::bf16* const columns = reinterpret_cast<const cpu::bf16*>(group) + half * kHalfPanel;
#pragma unroll
      for (int j = 0; j < 4; ++j)
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const float column = to_float(columns[4 * (2 * i + e % 2) + j]);
#pragma unroll
          for (int t = 0; t < 2; ++t)
            y[half][t][j][e] =
                add_alone(y[half][t][j][e], multiply_alone(static_cast<float>(sums[t][j][e]),
                                                           multiply_alone(scales[2 * t + e / 2], column)));
        }
    }
  }
#pragma unroll
  for (int half = 0; half < 2; ++half)
#pragma unroll
    for (int t = 0; t < 2; ++t)
#pragma unroll
      for (int e = 0; e < 4; ++e)
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const int64_t at = row + n + 16 * t + 8 * (e / 2);
          const int64_t column = panel * cpu::kQuantizedPanel + half * kHalfPanel + 4 * (2 * i + e % 2) + j;
          if (at < a.rows && column < a.outputs) store_any(a, at, column, y[half][t][j][e]);
        }
}

template <int kBits, int kRows>
cudaError_t launch_product(const cpu::QuantizedLinearArgs& args, cudaStream_t stream) {
  const int64_t blocks = (args.rows + kRows - 1) / kRows;
  const dim3 grid(static_cast<unsigned>((args.outputs + kColumns - 1) / kColumns * blocks));
  return launch(product<kBits, kRows>, grid, kThreads, sizeof(int) * kPieces<kRows> * kRows * kColumns,
                stream, args, Sizes(args.inputs, kBits), blocks);
}

template <int kBits>
cudaError_t launch_both(const cpu::QuantizedLinearArgs& args, cudaStream_t stream) {
  const Sizes sizes(args.inputs, kBits);
  const int64_t items = args.rows * sizes.groups;
  if (items > 0) {
    const cudaError_t error = with_dtype(args.dtype, [&](auto element) {
      const dim3 grid(static_cast<unsigned>((items + kThreads / 32 - 1) / (kThreads / 32)));
      return launch(rows_to_bytes<decltype(element), kBits>, grid, kThreads, 0, stream, args, sizes);
    });
    if (error != cudaSuccess) return error;
  }
  if (args.rows > kTileRows) {  // fewer leave most of the GPU without a warp
    const int64_t blocks = (args.rows + kWarps * kTileRows - 1) / (kWarps * kTileRows);
    const int64_t panels = (args.outputs + cpu::kQuantizedPanel - 1) / cpu::kQuantizedPanel;
    return launch(tensor_product<kBits>, dim3(static_cast<unsigned>(panels * blocks)), 32 * kWarps, 0, stream,
                  args, sizes, blocks);
  }
  if (args.rows == 1) return launch_product<kBits, 1>(args, stream);
  return args.rows <= 4 ? launch_product<kBits, 4>(args, stream) : launch_product<kBits, 8>(args, stream);
}

// One thread packs one word: four inputs of a column, or eight of 4 bits; the first of a group its scale.
template <int kBits>
__global__ void __launch_bounds__(kThreads)
    pack_words(const cpu::QuantizedPackArgs a, const Sizes sizes, const int64_t items) {
  const int64_t item = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (item >= items) return;
  const int64_t steps = sizes.padded / kUnit<kBits>;
  const int64_t in_panel = item % cpu::kQuantizedPanel, step = item / cpu::kQuantizedPanel % steps;
  const int64_t panel = item / cpu::kQuantizedPanel / steps;
  const int64_t column = panel * cpu::kQuantizedPanel + in_panel, k = step * kUnit<kBits>,
                group = k / kGroup<kBits>;
  uint8_t* const to = a.packed + panel * sizes.panel + group * kGroupBytes<kBits>;
  uint32_t word = 0;
  for (int64_t j = 0; j < kUnit<kBits>; ++j) {
    uint32_t u = kBits == 8 ? 128 : 8;
    if (column < a.outputs && k + j < a.inputs) {
      if constexpr (kBits == 8) {
        u = static_cast<uint8_t>(static_cast<const int8_t*>(a.w)[column * a.inputs + k + j] + 128);
      } else {
        const int64_t row_bytes = (a.inputs + 1) / 2;
        u = static_cast<const uint8_t*>(a.w)[column * row_bytes + (k + j) / 2] >> (k + j) % 2 * 4 & 15;
      }
    }
    word |= u << (j % 4 * 8 + j / 4 * 4);
  }
  reinterpret_cast<uint32_t*>(
      to)[cpu::kQuantizedPanel / 2 + step % (kGroup<kBits> / kUnit<kBits>)*cpu::kQuantizedPanel + in_panel] =
      word;
  if (k % kGroup<kBits> != 0) return;
  reinterpret_cast<cpu::bf16*>(to)[in_panel] =
      column < a.outputs ? a.scale[column * sizes.groups + group] : cpu::bf16{0};
}

}  // namespace

cudaError_t linear_quantized(const cpu::QuantizedLinearArgs& args, cudaStream_t stream) {
  return args.bits == 8 ? launch_both<8>(args, stream) : launch_both<4>(args, stream);
}

cudaError_t linear_quantized_pack(const cpu::QuantizedPackArgs& args, cudaStream_t stream) {
  const Sizes sizes(args.inputs, args.bits);
  const int64_t columns =
      (args.outputs + cpu::kQuantizedPanel - 1) / cpu::kQuantizedPanel * cpu::kQuantizedPanel;
  const int64_t items = columns * sizes.padded / cpu::quantized_unit(args.bits);
  return launch(args.bits == 8 ? pack_words<8> : pack_words<4>,
                dim3(static_cast<unsigned>((items + kThreads - 1) / kThreads)), kThreads, 0, stream, args,
                sizes, items);
}

}  // namespace llmcli::cuda
