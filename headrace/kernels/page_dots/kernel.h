// page_dots: what cpu.cpp offers at each level, and bind.cpp calls.
#pragma once

#include <stdint.h>

#include "headrace/bf16.h"
#include "headrace/level.h"

namespace headrace {

// A page's vectors are bf16 [kv_heads][count][size], from byte `at` of the page on.
struct PageDots {
    const float* q;  // [rows][heads][size]
    int64_t rows, heads, size;
    const uint8_t* arena;
    int64_t page_bytes, at, kv_heads, count;
    const int64_t* tables;      // [tables][width], pages
    const int64_t* row_tables;  // [rows]
    const int64_t* row_counts;  // [rows], at most width
    int64_t width;
    float* out;  // [rows][heads][width][count]
};

struct PageDotsTable {
    void (*dots)(const PageDots&);
};

HR_TABLE(PageDotsTable, page_dots)

}  // namespace headrace
