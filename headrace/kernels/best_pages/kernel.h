// best_pages: what cpu.cpp offers at each level, and bind.cpp calls.
#pragma once

#include <stdint.h>

#include "headrace/level.h"

namespace headrace {

struct BestPages {
    const float* scores;  // [rows][heads][width]
    int64_t rows, heads, width, kv_heads, leading;
    const int64_t *first, *pages, *kept;  // [rows]; 0 <= first, kept <= pages <= width
    uint8_t* out;                         // [kv_heads][rows][width]
};

struct BestPagesTable {
    void (*best)(const BestPages&);
};

HR_TABLE(BestPagesTable, best_pages)

}  // namespace headrace
