// What kernels of attention over pages have in common: the rows of a batch, and what each reads.
#pragma once

#include <stdint.h>

namespace headrace {

// Rows [first_row, end_row) read `length` tokens from position `start` on, in consecutive entries of `pages`.
struct Run {
    int64_t first_row, end_row, first_page, start, length;
};

struct AttentionRows {
    const float* q;  // [T, N, H], rows q_stride apart
    int64_t q_stride;
    int64_t rows, heads;
    const int64_t* positions;  // [T]
    const int64_t* pages;
    const Run* runs;  // runs of the same rows follow each other, by position
    int64_t num_runs;
    float scale;
    int64_t window;  // 0: none
    int64_t sink;    // first positions that are seen beside a window
    float* out;      // [T, N, H]
    float* lse;      // [T, N]
};

}  // namespace headrace
