// argmax: what cpu.cpp offers at each level, and bind.cpp calls.
#pragma once

#include <stdint.h>

#include "headrace/level.h"

namespace headrace {

struct Argmax {
    const void* x;  // [rows, width], width > 0
    int64_t rows, width;
    int64_t stride;  // elements from one row to the next
    int64_t* out;    // [rows]
};

struct ArgmaxTable {
    void (*f32)(const Argmax&);
    void (*bf16)(const Argmax&);
};

HR_TABLE(ArgmaxTable, argmax)

}  // namespace headrace
