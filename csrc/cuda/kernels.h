// What the GPU offers: one launcher for each kernel, on the argument structs of the CPU (cpu/kernels.h), with
// pointers to device memory. A launcher puts its kernel on the stream, waits for nothing and allocates
// nothing. An item's result depends on the item alone: the threads that share it are chosen by its length,
// never by the number of items or by the GPU.
#pragma once
#include <cuda_runtime.h>

#include "../cpu/kernels.h"

namespace llmcli::cuda {

cudaError_t softmax(const cpu::SoftmaxArgs& args, int64_t rows, cudaStream_t stream);
cudaError_t softmax_backward(const cpu::SoftmaxBackwardArgs& args, int64_t rows, cudaStream_t stream);
cudaError_t norm(const cpu::NormArgs& args, int64_t rows, cudaStream_t stream);
cudaError_t norm_backward(const cpu::NormBackwardArgs& args, cudaStream_t stream);
cudaError_t activation(const cpu::GeluArgs& args, cudaStream_t stream);
cudaError_t activation(const cpu::SiluGateArgs& args, cudaStream_t stream);
cudaError_t softcap(const cpu::SoftcapArgs& args, int64_t rows, cudaStream_t stream);
cudaError_t argmax(const cpu::ArgmaxArgs& args, int64_t rows, cudaStream_t stream);
cudaError_t recurrent_cell(const cpu::RecurrentCellArgs& args, int64_t rows, cudaStream_t stream);
cudaError_t column_sum(const cpu::ColumnSumArgs& args, cudaStream_t stream);

// y = x W^T + bias on weights of 8 or 4 bits. q, scales and starts, of the sizes that kernels.h of the CPU
// gives, with rows of q quantized_row(inputs) apart, are made first and read by the second kernel.
constexpr int64_t quantized_row(int64_t inputs) { return (inputs + 31) / 32 * 32; }
cudaError_t linear_quantized(const cpu::QuantizedLinearArgs& args, cudaStream_t stream);
cudaError_t linear_quantized_pack(const cpu::QuantizedPackArgs& args, cudaStream_t stream);

cudaError_t linear_cross_entropy(const cpu::CrossEntropyArgs& args, int64_t rows, cudaStream_t stream);
cudaError_t accumulate(const cpu::AccumulateArgs& args, int64_t rows, cudaStream_t stream);
// total = the sum of losses (rows), in an order that the number of rows gives.
cudaError_t sum_losses(const double* losses, int64_t rows, float* total, cudaStream_t stream);

// One token of each row of logits by inversion; see sample.cu. The CPU has no such kernel.
struct SampleArgs {
  const void* logits;      // (rows, V) contiguous
  const double* uniforms;  // (rows), in [0, 1)
  int64_t* tokens;         // (rows): -1 where the highest logit is not finite
  int64_t size;            // V, at least 1
  float temperature;       // above 0
  int64_t top_k;           // V for all
  double top_p;            // 1 for all
  float lowest;            // of (logit - highest) / temperature; -infinity for all
  cpu::DType dtype;
};
cudaError_t sample(const SampleArgs& args, int64_t rows, cudaStream_t stream);

cudaError_t rotary(const cpu::RotaryArgs& args, int64_t positions, cudaStream_t stream);  // positions: B * T

// Attention of D up to 256, without a cache; float32 has a kernel of its own.
cudaError_t attention(const cpu::AttentionArgs& args, cudaStream_t stream);
cudaError_t attention_f32(const cpu::AttentionArgs& args, cudaStream_t stream);
// Which attention() calls where it can: wgmma, on GPUs of compute capability 9.0.
bool attention_fits_sm90(const cpu::AttentionArgs& args);
cudaError_t attention_sm90(const cpu::AttentionArgs& args, cudaStream_t stream);

// The same bits, sooner where rows are few: many blocks of threads share a row's keys, and leave in
// args.partial, attention_partials(args) floats, what a second kernel merges. Only where
// attention_splits(args).
bool attention_splits(const cpu::AttentionArgs& args);
int64_t attention_partials(const cpu::AttentionArgs& args);
cudaError_t attention_split(const cpu::AttentionArgs& args, cudaStream_t stream);

// Its gradients, with attention_backward_floats(args) floats of working memory in args.partial; float32 has
// kernels of its own.
int64_t attention_backward_floats(const cpu::AttentionBackwardArgs& args);
cudaError_t attention_backward(const cpu::AttentionBackwardArgs& args, cudaStream_t stream);
cudaError_t attention_backward_f32(const cpu::AttentionBackwardArgs& args, cudaStream_t stream);

}  // namespace llmcli::cuda
