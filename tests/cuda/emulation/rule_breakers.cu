// Kernels that break one rule each, and one that keeps them: what the emulation must tell apart.
#include "cuda/launch.h"
#include "cuda/warp.h"

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
