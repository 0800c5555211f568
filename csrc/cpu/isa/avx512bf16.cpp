// x86-64 from Cooper Lake and Zen 4 on: dot products of bfloat16 pairs.
#include "../target.h"
#if defined(__x86_64__)
#define LLMCLI_ISA avx512bf16
#define LLMCLI_HAS_BF16
#define LLMCLI_HAS_VNNI
LLMCLI_TARGET_BEGIN("avx512bf16,avx512vnni,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,bmi2")
#include "../vec_avx512.h"
#include "../all.h"
LLMCLI_TARGET_END
#endif
