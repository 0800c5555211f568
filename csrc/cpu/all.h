// Every kernel and then the table: what an instruction set compiles. A new kernel is one line here.
#pragma once
#include "linear.h"
#include "softmax.h"
#include "tile.h"
#include "attention.h"

#include "table.h"
