// neurons: what cpu.cpp offers at each level, and bind.cpp calls.
#pragma once

#include <stdint.h>

#include "headrace/level.h"
#include "headrace/product.h"

namespace headrace {

struct Neurons {
    static constexpr int64_t kSegment = 256;  // neurons that are added up before others join them
    static constexpr int64_t kFew = 8;        // rows whose sums of every segment are kept
    static constexpr int64_t kLanes = 16;

    RowSource source;       // of rows [width]
    float* gate;            // [rows, neurons]: the gate's outputs; becomes what each neuron adds
    const void *up, *down;  // [neurons, width] each, float32 or bfloat16: a neuron is a run of numbers
    bool is_bf16, gelu;
    float threshold;
    int64_t rows, width, neurons;
    float* memory;  // items() numbers
    ProductEnd end;

    int64_t padded() const { return (width + kLanes - 1) / kLanes * kLanes; }
    int64_t segments() const { return (neurons + kSegment - 1) / kSegment; }
    // Rows of x, and for a few rows the sums of every segment.
    int64_t items() const { return rows * padded() * (1 + (rows <= kFew ? segments() : 0)); }
};

struct NeuronsTable {
    void (*run)(const Neurons&);
};

HR_TABLE(NeuronsTable, neurons)

}  // namespace headrace
