// limits: what cpu.cpp offers at each level, and bind.cpp calls.
#pragma once

#include <stdint.h>

#include "headrace/level.h"

namespace headrace {

// `pieces` pieces of work, `rounds` rounds each, on all threads of the pool. Returns the operations done, a
// multiplication and an addition counted as two.
using Arithmetic = int64_t (*)(int64_t pieces, int64_t rounds);

struct LimitsTable {
    void (*fill)(uint8_t* data, int64_t bytes, int byte);
    void (*read)(const uint8_t* data, int64_t bytes);
    Arithmetic int8, float32;
    Arithmetic bf16;  // null where the level has no such instruction
};

HR_TABLE(LimitsTable, limits)

}  // namespace headrace
