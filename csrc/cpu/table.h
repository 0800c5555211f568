// Fills the table of entry points: include last, once per instruction set.
#pragma once

#define LLMCLI_STRING_(x) #x
#define LLMCLI_STRING(x) LLMCLI_STRING_(x)

namespace llmcli::cpu::LLMCLI_ISA {

extern const Kernels table;
const Kernels table = {
    .isa = LLMCLI_STRING(LLMCLI_ISA),
    .lanes = N,
    .softmax = softmax,
    .linear = linear,
    .linear_pack = linear_pack,

    .attention = attention,
    .attention_scratch = attention_scratch,
};

}  // namespace llmcli::cpu::LLMCLI_ISA
