// Rows of activations to tables. Compiled once per level.
#pragma once

#include "headrace/parallel.h"
#include "headrace/simd_math.h"
#include "lut_linear/kernel.h"

namespace headrace::HR_LEVEL {
namespace {

constexpr float kLeastSum = 127.0f / __FLT_MAX__;

// Lane e: 1 if bit `input` of e is set, else -1.
inline F32x16 signs(int input) {
    float sign[kLanes];
    for (int e = 0; e < kLanes; ++e) sign[e] = e >> input & 1 ? 1.0f : -1.0f;
    return load(sign);
}

// The largest entry of any table: all signs as they are, added up in the order of `tabulate_group`.
inline float largest_sum(const float* x, int64_t quads) {
    float most = 0;
    for (int64_t q = 0; q < quads; ++q, x += 4) {
        const float sum = (__builtin_fabsf(x[0]) + __builtin_fabsf(x[1])) +
                          (__builtin_fabsf(x[2]) + __builtin_fabsf(x[3]));
        most = sum > most ? sum : most;
    }
    return most;
}

// Returns the scale and the sum of the entries 15.
inline float tabulate_group(const float* x, int64_t quads, uint8_t* tables, int32_t& sum) {
    const float most = largest_sum(x, quads);
    // Where the factor would overflow, all is as good as zero. The bounds are for what is not a number: its
    // entries mean nothing, but sums of them must not overflow.
    const F32x16 factor = broadcast(most > kLeastSum ? 127.0f / most : 0.0f);
    const F32x16 low = broadcast(-127), high = broadcast(127);
    const F32x16 sign0 = signs(0), sign1 = signs(1), sign2 = signs(2), sign3 = signs(3);
    const I32x16 zero = all_lanes(kTableZero);
    sum = 0;
    for (int64_t q = 0; q < quads; ++q, x += 4, tables += 16) {
        const F32x16 first = broadcast(x[0]) * sign0 + broadcast(x[1]) * sign1;
        const F32x16 second = broadcast(x[2]) * sign2 + broadcast(x[3]) * sign3;
        store_u8(tables, nearest(max(min((first + second) * factor, high), low)) + zero);
        sum += tables[15] - kTableZero;
    }
    return most / 127.0f;
}

void tabulate(const IntShape& shape, const RowSource& source, const LutRows& rows) {
    for_each_row(rows.rows, 16 * shape.padded(), [&](int64_t row) {
        float* x = static_cast<float*>(scratch(Scratch::piece, shape.padded() * 4));
        for (int64_t i = shape.width / kLanes * kLanes; i < shape.padded(); ++i) x[i] = 0;
        read_row(source, row, shape.width, x);
        uint8_t* tables = rows.tables + row * shape.padded() * 4;
        const int64_t at = row * shape.groups();
        for (int64_t g = 0; g < shape.groups(); ++g) {
            const int64_t inputs = shape.group_chunks(g) * kChunk;
            rows.scales[at + g] = tabulate_group(x, inputs / 4, tables, rows.sums[at + g]);
            x += inputs;
            tables += inputs * 4;
        }
    });
}

}  // namespace
}  // namespace headrace::HR_LEVEL
