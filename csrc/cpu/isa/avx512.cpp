// x86-64 from Skylake-SP and Zen 4 on.
#include "../target.h"
#if defined(__x86_64__)
#define LLMCLI_ISA avx512
LLMCLI_TARGET_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,bmi2")
#include "../vec_avx512.h"
#include "../all.h"
LLMCLI_TARGET_END
#endif
