// draw: what cpu.cpp offers at each level, and bind.cpp calls.
#pragma once

#include <stdint.h>

#include "headrace/level.h"

namespace headrace {

// Two to this power tokens at most: the sum of their weights, 2^40 each at most, fits in 63 bits.
constexpr int kMostTokensLog2 = 22;

struct Logits {
    float* x;
    int64_t count;  // > 0
};

struct DrawTable {
    void (*top_k)(const Logits&, int64_t k);
    void (*top_p)(const Logits&, double p);
    void (*min_p)(const Logits&, float log_p);
    int64_t (*draw)(const Logits&, double u);
};

HR_TABLE(DrawTable, draw)

}  // namespace headrace
