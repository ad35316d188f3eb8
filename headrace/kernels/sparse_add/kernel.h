// sparse_add: what cpu.cpp offers at each level, and bind.cpp calls.
//
// A sparse matrix, [outputs, width], output by output: an entry has its input in the low 16 bits and its
// weight, as bfloat16, in the high ones. With the input cleared, it is the weight as float32.
#pragma once

#include <stdint.h>

#include "headrace/level.h"
#include "headrace/product.h"

namespace headrace {

constexpr int64_t kSparseMostWidth = 1 << 16;

struct SparseWeight {
    int64_t outputs, width;
    const int32_t* starts;  // [outputs + 1]: of the outputs' entries
    const uint32_t* entries;
    int64_t count;  // of entries
};

struct SparseAdd {
    SparseWeight weight;
    RowSource source;
    // Room for the rows: [rows / 16][width][16] floats, or [width] of a single one.
    float* rows;
    int64_t count;
    float* out;  // [count, outputs]
};

// Functions return false where starts or inputs are out of range; those entries are taken for others.
struct SparseAddTable {
    bool (*add)(const SparseAdd&);
    // Entries of some outputs take the place of what is in `out`, [count, width].
    bool (*put_outputs)(const SparseWeight&, const int64_t* outputs, int64_t count, float* out);
};

HR_TABLE(SparseAddTable, sparse_add)

}  // namespace headrace
