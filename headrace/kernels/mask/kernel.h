// mask: what cpu.cpp offers at each level, and bind.cpp calls.
#pragma once

#include <stdint.h>

#include "headrace/level.h"

namespace headrace {

struct Mask {
    const void* x;  // [width]
    int64_t width;
    const uint8_t* bits;  // [at least width / 8]
    float* out;           // [width]
};

struct MaskTable {
    void (*f32)(const Mask&);
    void (*bf16)(const Mask&);
};

HR_TABLE(MaskTable, mask)

}  // namespace headrace
