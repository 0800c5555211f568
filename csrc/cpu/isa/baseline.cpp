// What every CPU of the architecture runs.
#include "../target.h"
#define LLMCLI_ISA baseline
#include "../vec_generic.h"
#include "../all.h"
