// The kernels of amx.cpp on emulated tiles: what tests run where the CPU has none, and nobody is offered.
#include "../target.h"
#if defined(__x86_64__)
#define LLMCLI_ISA amx_emulated
#define LLMCLI_HAS_BF16
#define LLMCLI_HAS_AMX
LLMCLI_TARGET_BEGIN("avx512bf16,avx512vnni,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,bmi2")
#include "../vec_avx512.h"
#include "../tiles_emulated.h"
#include "../all_amx.h"
LLMCLI_TARGET_END
#endif
