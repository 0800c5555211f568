// Kernels that break one rule each, and one that keeps them: what the emulation must tell apart; and single
// instructions of tensor cores.
#include "cuda/launch.h"
#include "cuda/warp.h"

#include <emulated_ptx_sm90.h>

namespace llmcli::cuda {
namespace {

constexpr int kThreads = 64;

// y[t] is the number of the opposite thread, by way of shared memory.
__global__ void mirror(float* y, bool barrier) {
  float* const shared = shared_memory<float>();
  const int t = static_cast<int>(threadIdx.x);
  shared[t] = static_cast<float>(t);
  if (barrier) sync_block();
  y[t] = shared[kThreads - 1 - t];
}
__global__ void writes_past_shared_memory(float*) { shared_memory<float>()[kThreads + threadIdx.x] = 1.0f; }
__global__ void reads_nowhere(float* y) { y[0] = *reinterpret_cast<float*>(8 * threadIdx.x); }
__global__ void half_a_block_at_a_barrier(float*) {
  if (threadIdx.x < 32) sync_block();
}
__global__ void half_a_warp_at_a_shuffle(float* y) {
  if (threadIdx.x % 2 == 0) y[threadIdx.x] = shuffle_xor(1.0f, 2);
}
__global__ void a_warp_at_two_instructions(float* y) {
  if (threadIdx.x % 2 == 0) {
    y[threadIdx.x] = shuffle_xor(1.0f, 2);
  } else {
    sync_warp();
  }
}

// x (16, 32): lane l gets the four registers, as eight numbers each of 16 bits, of its row l of y (32, 8).
__global__ void loads_matrices(const uint16_t* x, uint16_t* y, bool transposed) {
  uint16_t* const shared = shared_memory<uint16_t>();
  const int lane = static_cast<int>(threadIdx.x);
  for (int i = lane; i < 256; i += 32) shared[i] = x[i];
  sync_block();
  uint32_t registers[4];
  if (transposed) {
    load_matrices_transposed(shared + lane * 8, registers);
  } else {
    load_matrices(shared + lane * 8, registers);
  }
  for (int i = 0; i < 8; ++i) y[lane * 8 + i] = static_cast<uint16_t>(registers[i / 2] >> (i % 2 * 16));
}
// Fragments as each lane holds them: a (32, 4), b (32, 2), c (32, 4).
__global__ void multiplies(const uint32_t* a, const uint32_t* b, float* c) {
  const int lane = static_cast<int>(threadIdx.x);
  multiply<bf16>(*reinterpret_cast<const uint32_t (*)[4]>(a + lane * 4), b[lane * 2], b[lane * 2 + 1],
                 *reinterpret_cast<float (*)[4]>(c + lane * 4));
}
__global__ void multiplies_bytes(const uint32_t* a, const uint32_t* b, int* c) {
  const int lane = static_cast<int>(threadIdx.x);
  multiply_bytes(*reinterpret_cast<const uint32_t (*)[4]>(a + lane * 4), b[lane * 2], b[lane * 2 + 1],
                 *reinterpret_cast<int (*)[4]>(c + lane * 4));
}
// Asks for 16 bytes and reads them, with a wait for them or without.
__global__ void copies(const float* x, float* y, bool wait) {
  float* const shared = shared_memory<float>();
  const int lane = static_cast<int>(threadIdx.x);
  copy_async(shared + lane * 4, x + lane * 4, lane < 31);
  copy_commit();
  if (wait) copy_wait<0>();
  for (int i = 0; i < 4; ++i) y[lane * 4 + i] = shared[lane * 4 + i];
  copy_wait<0>();
}

// A box (128, 64) of x in shared memory; its rows' products with its first 64 rows, as each thread holds them
// (128, 64), and p, as each thread holds it (128, 4), times its first 16 rows (128, 32). Descriptors have
// these fields beside the address.
struct Faults {
  bool no_wait, wrong_phase, no_begin, no_end;
};
__global__ void multiplies_box(const TensorMap x, const uint32_t* p, float* y, uint64_t fields,
                               Faults faults) {
  unsigned char* const start = shared_memory<unsigned char>();
  bf16* const box = reinterpret_cast<bf16*>(start + (1024 - shared_address(start) % 1024) % 1024);
  Barrier* const barrier = reinterpret_cast<Barrier*>(box + 128 * 64);
  const int thread = static_cast<int>(threadIdx.x);
  if (thread == 0) barrier->begin(1), barriers_begin();
  sync_block();
  if (thread == 0) barrier->arrive_and_expect(128 * 128), copy_box(box, x, 0, 0, 0, 0, barrier);
  if (!faults.no_wait) barrier->wait(faults.wrong_phase ? 1 : 0);
  const auto matrix = [&](int bytes) { return fields | ((shared_address(box) + bytes) >> 4); };
  float rows[64], columns[32];
  uint32_t mine[4];
  for (int i = 0; i < 4; ++i) mine[i] = p[thread * 4 + i];
  if (!faults.no_begin) products_begin();
  for (int k = 0; k < 4; ++k) multiply_rows<bf16>(matrix(k * 32), matrix(k * 32), k > 0, rows);
  multiply_columns<bf16>(mine, matrix(0), false, columns);
  products_commit();
  if (!faults.no_end) products_wait<0>();
  for (int i = 0; i < 96; ++i) y[thread * 96 + i] = i < 64 ? rows[i] : columns[i - 64];
  barrier->wait(0);
}

cudaError_t start(const std::string& name, float* y) {
  constexpr size_t kBytes = kThreads * sizeof(float);
  if (name == "keeps the rules") return launch(mirror, dim3(2), kThreads, kBytes, nullptr, y, true);
  if (name == "no barrier") return launch(mirror, dim3(2), kThreads, kBytes, nullptr, y, false);
  if (name == "past shared memory")
    return launch(writes_past_shared_memory, dim3(1), kThreads, kBytes, nullptr, y);
  if (name == "nowhere") return launch(reads_nowhere, dim3(1), kThreads, 0, nullptr, y);
  if (name == "half a block") return launch(half_a_block_at_a_barrier, dim3(1), kThreads, 0, nullptr, y);
  if (name == "half a warp") return launch(half_a_warp_at_a_shuffle, dim3(1), kThreads, 0, nullptr, y);
  if (name == "two instructions") return launch(a_warp_at_two_instructions, dim3(1), kThreads, 0, nullptr, y);
  if (name == "too many threads") return launch(mirror, dim3(1), 2048, kBytes, nullptr, y, true);
  if (name == "too much shared memory") return launch(mirror, dim3(1), kThreads, 228 << 10, nullptr, y, true);
  return cudaErrorInvalidValue;
}

}  // namespace
}  // namespace llmcli::cuda

// Runs a kernel on y (64); returns the error's text.
extern "C" __attribute__((visibility("default"))) const char* run(const char* name, float* y) {
  return cudaGetErrorString(llmcli::cuda::start(name, y));
}
extern "C" __attribute__((visibility("default"))) const char* run_loads(const uint16_t* x, uint16_t* y,
                                                                        int transposed) {
  using namespace llmcli::cuda;
  return cudaGetErrorString(launch(loads_matrices, dim3(1), 32, 512, nullptr, x, y, transposed != 0));
}
extern "C" __attribute__((visibility("default"))) const char* run_multiplies(const uint32_t* a,
                                                                             const uint32_t* b, float* c) {
  using namespace llmcli::cuda;
  return cudaGetErrorString(launch(multiplies, dim3(1), 32, 0, nullptr, a, b, c));
}
extern "C" __attribute__((visibility("default"))) const char* run_multiplies_bytes(const uint32_t* a,
                                                                                   const uint32_t* b,
                                                                                   int* c) {
  using namespace llmcli::cuda;
  return cudaGetErrorString(launch(multiplies_bytes, dim3(1), 32, 0, nullptr, a, b, c));
}
extern "C" __attribute__((visibility("default"))) const char* run_copies(const float* x, float* y, int wait) {
  using namespace llmcli::cuda;
  return cudaGetErrorString(launch(copies, dim3(1), 32, 512, nullptr, x, y, wait != 0));
}
extern "C" __attribute__((visibility("default"))) const char* run_box(const uint16_t* x, const uint32_t* p,
                                                                      float* y, uint64_t fields,
                                                                      const char* fault) {
  using namespace llmcli::cuda;
  const std::string name = fault;
  const Faults faults{name == "no wait", name == "wrong phase", name == "no begin", name == "no end"};
  TensorMap map;
  cudaError_t error = describe_tensor(x, {64, 100, 1, 1}, {64, 8, 8}, 128, &map);
  if (error == cudaSuccess)
    error = launch(multiplies_box, dim3(1), 128, 1024 + 128 * 128 + 8, nullptr, map, p, y, fields, faults);
  return cudaGetErrorString(error);
}
