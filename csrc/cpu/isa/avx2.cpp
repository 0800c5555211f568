// x86-64 from Haswell and Zen on.
#include "../target.h"
#if defined(__x86_64__)
#define LLMCLI_ISA avx2
LLMCLI_TARGET_BEGIN("avx2,fma,f16c,bmi2")
#include "../vec_avx2.h"
#include "../all.h"
LLMCLI_TARGET_END
#endif
