// Every kernel and then the table: what an instruction set compiles. A new kernel is one line here.
#pragma once
#include "linear.h"
#include "softmax.h"
#include "tile.h"
#if defined(LLMCLI_HAS_BF16)
#include "tile_bf16.h"
#endif
#include "attention.h"

#include "table.h"
