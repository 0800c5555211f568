// x86-64 from Sapphire Rapids on: matrix tiles.
#include "../target.h"
#if defined(__x86_64__)
#define LLMCLI_ISA amx
#define LLMCLI_HAS_BF16
#define LLMCLI_HAS_VNNI
#define LLMCLI_HAS_AMX
LLMCLI_TARGET_BEGIN(
    "amx-tile,amx-bf16,amx-int8,avx512bf16,avx512vnni,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,bmi2")
#include "../vec_avx512.h"
#include "../tiles_native.h"
#include "../all_amx.h"
LLMCLI_TARGET_END
#endif
