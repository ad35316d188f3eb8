// route: what cpu.cpp offers at each level, and bind.cpp calls.
#pragma once

#include <stdint.h>

#include "headrace/level.h"

namespace headrace {

struct Routing {
    const float* logits;  // [rows, experts], contiguous
    int64_t rows, experts, active;
    bool renormalise;
    float* shares;  // [rows, active], largest first
    int64_t* ids;   // [rows, active]
};

// Moves whole rows of `width` numbers; those of the batch may lie apart, those of assignments are contiguous.
struct Move {
    const int64_t* rows;  // [count] rows of the batch
    int64_t count, width, stride;
};

struct RouteTable {
    void (*route)(const Routing&);
    void (*gather)(const Move&, const float* from, float* to);
    void (*scatter_add)(const Move&, const float* from, const float* shares, float* to);
};

HR_TABLE(RouteTable, route)

}  // namespace headrace
