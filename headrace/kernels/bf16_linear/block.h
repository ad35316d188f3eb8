// multiply_block(rows, weights, block): all rows times 64 outputs, by what the level has.
#pragma once

#if defined(HR_LEVEL_AMX)
#include "bf16_linear/tiles.h"
#else
#include "bf16_linear/dots.h"
#endif
