// rope: what cpu.cpp offers at each level, and bind.cpp calls.
#pragma once

#include <stdint.h>

#include "headrace/level.h"

namespace headrace {

struct Rope {
    float* x;  // [rows, heads, 2 * pairs], rows `stride` apart; rotated in place
    int64_t rows, heads, pairs, stride;
    const float* cos;  // [positions, pairs]
    const float* sin;
    const int64_t* positions;  // [rows]
};

struct RopeTable {
    void (*rotate)(const Rope&);
};

HR_TABLE(RopeTable, rope)

}  // namespace headrace
