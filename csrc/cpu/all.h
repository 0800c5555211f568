// Every kernel and then the table: what an instruction set compiles. A new kernel is one line here.
#pragma once
#include "activation.h"
#include "argmax.h"
#include "blocks.h"
#include "column_sum.h"
#include "finite.h"
#include "linear.h"
#include "linear_quantized.h"
#include "linear_blocks.h"
#include "matmul.h"
#include "norm.h"
#include "probe.h"
#include "quantize.h"
#include "recurrent_cell.h"
#include "rotary.h"
#include "softcap.h"
#include "softmax.h"
#include "cross_entropy.h"
#include "linear_logprobs.h"
#include "linear_argmax.h"
#include "tile.h"
#if defined(LLMCLI_HAS_BF16)
#include "tile_bf16.h"
#endif
#include "attention.h"
#include "attention_backward.h"

#include "table.h"
