// outliers: what cpu.cpp offers at each level, and bind.cpp calls.
#pragma once

#include <stdint.h>

#include "headrace/bf16.h"
#include "headrace/level.h"

namespace headrace {

struct Outliers {
    static constexpr int64_t kMost = 256;  // weights that a group may offer

    const bf16* rows;  // [parts * height, width]
    int64_t parts, height, width, group;
    int64_t count;    // of each part, at most height * width
    int64_t most;     // that a group offers, below `group`
    int64_t* places;  // [parts * count], in the rows, ascending

    int64_t part_size() const { return height * width; }
    int64_t groups() const { return (width + group - 1) / group; }
    int64_t part_words() const { return (part_size() + 63) / 64; }  // of one bit per weight
    int64_t offered() const { return height * groups() * most; }
};

struct OutliersTable {
    bool (*choose)(const Outliers&);  // false: some weights are not finite
};

HR_TABLE(OutliersTable, outliers)

}  // namespace headrace
