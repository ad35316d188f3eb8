// rms_norm: what cpu.cpp offers at each level, and bind.cpp calls.
#pragma once

#include <stdint.h>

#include "headrace/level.h"

namespace headrace {

struct RmsNorm {
    const void* x;       // [rows, width], contiguous
    const void* weight;  // [width]
    void* out;           // [rows, width]; may be x itself
    int64_t rows;
    int64_t width;
    float eps;
    float weight_offset;
};

struct RmsNormTable {
    void (*f32)(const RmsNorm&);
    void (*bf16)(const RmsNorm&);
};

HR_TABLE(RmsNormTable, rms_norm)

}  // namespace headrace
