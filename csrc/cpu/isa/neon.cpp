// arm64: NEON is part of the architecture; the compiler's four-lane vectors map onto it.
#include "../target.h"
#if defined(__aarch64__)
#define LLMCLI_ISA neon
#include "../vec_generic.h"
#include "../all.h"
#endif
