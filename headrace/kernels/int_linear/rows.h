// Rows of activations to 8-bit codes. Compiled once per level.
#pragma once

#include "headrace/parallel.h"
#include "int_linear/kernel.h"

namespace headrace::HR_LEVEL {
namespace {

constexpr float kLeast = 0x1p-119f;  // a row with nothing above has codes of 0: the factor would be infinite

float largest_magnitude(const float* x, int64_t padded) {
    F32x16 most = broadcast(0);
    for (int64_t i = 0; i < padded; i += kLanes) most = max(magnitude(load(x + i)), most);
    return largest(most);
}

void quantise_row(const IntShape& shape, const float* x, const IntRows& rows, int64_t row) {
    const int64_t padded = shape.padded(), groups = shape.groups();
    const float most = largest_magnitude(x, padded);
    const F32x16 factor = broadcast(most >= kLeast ? 127.0f / most : 0.0f);
    const int64_t step = shape.step();
    int8_t* codes = rows.codes + row * rows.stride;
    int64_t i = 0;
    for (int64_t g = 0; g < groups; ++g) {
        I32x16 total = all_lanes(0);
        const int64_t end = i + shape.group_chunks(g) * kChunk;
        for (; i < end; i += kLanes) {
            const I32x16 code = nearest(load(x + i) * factor);
            store_i8(codes + i / step * rows.step_bytes + i % step, code);
            total = total + code;
        }
        rows.sums[row * groups + g] = sum(total);
    }
    rows.scales[row] = most / 127.0f;
}

void quantise(const IntShape& shape, const RowSource& source, const IntRows& rows) {
    for_each_row(rows.rows, 4 * shape.padded(), [&](int64_t row) {
        float* x = static_cast<float*>(scratch(Scratch::piece, shape.padded() * 4));
        for (int64_t i = shape.width / kLanes * kLanes; i < shape.padded(); ++i) x[i] = 0;
        read_row(source, row, shape.width, x);
        quantise_row(shape, x, rows, row);
    });
}

}  // namespace
}  // namespace headrace::HR_LEVEL
