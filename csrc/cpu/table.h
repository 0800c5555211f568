// Fills the table of entry points: include last, once per instruction set.
#pragma once

namespace llmcli::cpu::LLMCLI_ISA {

extern const Kernels table;
const Kernels table = {
    .isa = LLMCLI_STRING(LLMCLI_ISA),
    .lanes = N,
    .softmax = softmax,
    .softmax_backward = softmax_backward,
    .cross_entropy = cross_entropy,
    .cross_entropy_part = cross_entropy_part,
    .blocks = blocks_unpack,
    .finite = finite,
    .softcap = softcap,
    .argmax = argmax,
    .logprobs_part = logprobs_part,
    .logprobs = logprobs,
    .screen_pack = screen_pack,
    .screen_rows = screen_rows,
    .screen_panel = screen_panel,
    .screen_choose = screen_choose,
    .accumulate = accumulate,
    .norm = norm,
    .norm_backward = norm_backward,
    .gelu = gelu,
    .silu_gate = silu_gate,
    .column_sum = column_sum,
    .matmul = matmul,
    .linear = linear,
    .linear_pack = linear_pack,
    .linear_quantized_rows = linear_quantized_rows,
    .linear_quantized = linear_quantized,
    .linear_quantized_pack = linear_quantized_pack,
    .linear_blocks_pack = linear_blocks_pack,
    .quantize = quantize,
    .recurrent_cell = recurrent_cell,
    .rotary = rotary,
    .attention = attention,
    .attention_scratch = attention_scratch,
    .cache_store = cache_store,
    .attention_backward = attention_backward,
    .attention_backward_scratch = attention_backward_scratch,
    .elementary = elementary,
    .multiply_add = multiply_add,
};

}  // namespace llmcli::cpu::LLMCLI_ISA
