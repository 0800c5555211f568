// Attention of many rows on sm_90a, in bfloat16 and float16 (https://arxiv.org/abs/2407.08608): one warp
// fetches keys and values ahead, and two warpgroups of 64 rows each take turns on the tensor cores: one
// multiplies while the other exponentiates. A warpgroup begins the scores of the next block of keys together
// with the weighted sums of this one. The order of its sums is that of attention.cu: blocks of 128 keys, each
// with a maximum, a sum and weighted sums of its own, merged in order. So a row's bits hang neither on the
// batch nor on its tile.
#include "attention_sm90.h"

namespace llmcli::cuda {
namespace {

using namespace sm90;

template <class T, int kD>
__global__ void __launch_bounds__(kThreads, 1)
    attention_sm90_kernel(const __grid_constant__ AttentionArgs a, const int64_t tiles,
                          const __grid_constant__ TensorMap k_map, const __grid_constant__ TensorMap v_map) {
#if defined(LLMCLI_ON_SM90)
  const int64_t heads = a.B * a.G;
  const int64_t tile = tiles - 1 - blockIdx.x / heads;  // those that see most begin first
  const Work<T, kD> work(a, blockIdx.x % heads, tile);
  const int thread = static_cast<int>(threadIdx.x);
  if (thread == 0) {
    for (int stage = 0; stage < kStages; ++stage) {
      work.signals->keys_full[stage].begin(1), work.signals->keys_empty[stage].begin(kConsumers * 4);
      work.signals->values_full[stage].begin(1), work.signals->values_empty[stage].begin(kConsumers * 4);
    }
    for (int i = 0; i < kPartial; ++i) work.signals->uncleaned[i].begin(1), work.signals->infinite[i] = 0;
    barriers_begin();
  }
  sync_block();
  if (thread < kGroup) {
    release_registers<kProducerRegisters>();
    if (thread == 0) produce(work, k_map, v_map);
    if (thread >= 32) clean(work, thread - 32);
  } else {
    claim_registers<kConsumerRegisters>();
    Consumer<T, kD> consumer(work, thread / kGroup - 1, thread % kGroup);
    consumer.load_queries(thread % kGroup);
    consumer.run();
  }
#endif
}

template <class T, int kD>
cudaError_t start(const AttentionArgs& a, const TensorMap& k_map, const TensorMap& v_map,
                  cudaStream_t stream) {
  const int64_t tiles = (a.T * (a.H / a.G) + kRows - 1) / kRows;
  return launch(attention_sm90_kernel<T, kD>, dim3(static_cast<unsigned>(tiles * a.B * a.G)), kThreads,
                kBytes<kD>, stream, a, tiles, k_map, v_map);
}
template <class T>
cudaError_t start(const AttentionArgs& a, const TensorMap& k_map, const TensorMap& v_map,
                  cudaStream_t stream) {
  return a.D <= 64 ? start<T, 64>(a, k_map, v_map, stream) : start<T, 128>(a, k_map, v_map, stream);
}

// Whether the current GPU is of compute capability 9.0 and the binary holds code for sm_90a.
bool on_sm90() {
#if defined(LLMCLI_SM90A)
  int device = 0, major = 0, minor = 0;
  return cudaGetDevice(&device) == cudaSuccess &&
         cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess &&
         cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device) == cudaSuccess &&
         major == 9 && minor == 0;
#else
  return false;
#endif
}

// (B, G, S, D) for boxes of one head's keys; a size of 1 takes any stride.
bool boxes_of(const AttentionArgs& a, int64_t batch, int64_t head, int64_t key, int64_t (&sizes)[4],
              int64_t (&strides)[3]) {
  const int64_t size[4] = {a.D, a.S, a.G, a.B}, stride[3] = {key, head, batch};
  bool possible = a.S > 0;
  for (int i = 0; i < 4; ++i) sizes[i] = size[i];
  for (int i = 0; i < 3; ++i) {
    strides[i] = size[i + 1] == 1 ? kVector<bf16> : stride[i];
    possible = possible && strides[i] > 0 && strides[i] < int64_t{1} << 39;
  }
  return possible;
}

}  // namespace

bool attention_fits_sm90(const AttentionArgs& a) {
  int64_t sizes[4], strides[3];
  return a.dtype != cpu::DType::f32 && !a.bias && !(a.cap > 0.0f) &&
         (a.D <= 64 || (a.D > 96 && a.D <= 128)) && in_vectors<bf16>(a) &&
         boxes_of(a, a.k_b, a.k_g, a.k_s, sizes, strides) &&
         boxes_of(a, a.v_b, a.v_g, a.v_s, sizes, strides) && on_sm90();
}

cudaError_t attention_sm90(const AttentionArgs& a, cudaStream_t stream) {
  TensorMap k_map, v_map;
  int64_t sizes[4], strides[3];
  boxes_of(a, a.k_b, a.k_g, a.k_s, sizes, strides);
  cudaError_t error = describe_tensor(a.k, sizes, strides, kKeys, &k_map);
  if (error != cudaSuccess) return error;
  boxes_of(a, a.v_b, a.v_g, a.v_s, sizes, strides);
  error = describe_tensor(a.v, sizes, strides, kKeys, &v_map);
  if (error != cudaSuccess) return error;
  return a.dtype == cpu::DType::bf16 ? start<bf16>(a, k_map, v_map, stream)
                                     : start<f16>(a, k_map, v_map, stream);
}

}  // namespace llmcli::cuda
