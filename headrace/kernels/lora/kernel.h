// lora: what cpu.cpp offers at each level, and bind.cpp calls.
//
// One adapter's weights for one product, as two runs of numbers that are read front to back:
//
//   down   [ranks][width, padded with zeros to 16]       the ranks of its parts, one part after the other
//   up     part after part: [blocks of 64 outputs, the last one padded with zeros][ranks of the part][64]
//
// One of the two may be indices in the place of a matrix of zeros and ones: ranks that are inputs, or
// outputs.
#pragma once

#include <stdint.h>

#include "headrace/bf16.h"
#include "headrace/level.h"
#include "headrace/product.h"

namespace headrace {

// Some of the outputs, which have ranks of their own: stacked products (query, key, value) have several.
struct LoraPart {
    static constexpr int64_t kBlock = 64;

    int64_t ranks, first, outputs;

    int64_t blocks() const { return (outputs + kBlock - 1) / kBlock; }
    int64_t items() const { return blocks() * kBlock * ranks; }
};

// The rows of one adapter.
struct LoraGroup {
    const void *down, *up;
    const int64_t* inputs;   // [ranks], or null; if set, there is no down, and a rank is this input
    const int64_t* outputs;  // [ranks], or null; if set, there is no up, and a rank is added to this output
    bool is_bf16;            // else float32
    const float* scale;      // [ranks]
    const LoraPart* parts;
    int64_t part_count, ranks;
    const int64_t* rows;           // [row_count], of x and of out
    int64_t row_count, first_row;  // first_row: rows of the groups before it
};

struct Lora {
    RowSource source;
    int64_t width, outputs;
    const LoraGroup* groups;
    int64_t group_count, row_count;
    float* out;     // [rows, outputs]
    float* inputs;  // room for [row_count, padded()]
    float* hidden;  // room for [row_count, most_ranks]
    int64_t most_ranks;

    int64_t padded() const { return (width + 15) / 16 * 16; }
};

struct LoraTable {
    void (*add)(const Lora&);
};

HR_TABLE(LoraTable, lora)

}  // namespace headrace
