// Rows of activations to tables. Compiled once per level.
#pragma once

#include "headrace/parallel.h"
#include "headrace/simd_math.h"
#include "lut_linear/kernel.h"

namespace headrace::HR_LEVEL {
namespace {

constexpr float kMostSteps = kMostEntry, kLeastSum = kMostSteps / __FLT_MAX__;

// Lane e: 1 if bit `input` of e is set, else -1.
inline F32x16 signs(int input) {
    float sign[kLanes];
    for (int e = 0; e < kLanes; ++e) sign[e] = e >> input & 1 ? 1.0f : -1.0f;
    return load(sign);
}

// The largest entry of any table: all signs as they are, added up in the order of `tabulate_group`.
inline float largest_sum(const float* x, int64_t quads) {
    F32x16 most = broadcast(0);
    for (int64_t q = 0; q < quads; q += kLanes, x += 4 * kLanes) {
        float sums[kLanes] = {};
        const int64_t count = quads - q < kLanes ? quads - q : kLanes;
        for (int64_t i = 0; i < count; ++i)
            sums[i] = (__builtin_fabsf(x[4 * i]) + __builtin_fabsf(x[4 * i + 1])) +
                      (__builtin_fabsf(x[4 * i + 2]) + __builtin_fabsf(x[4 * i + 3]));
        most = max(load(sums), most);
    }
    return largest(most);
}

// Returns the scale; `sum` becomes that of the entries 15.
inline float tabulate_group(const float* x, int64_t quads, uint8_t* tables, int32_t& sum) {
    const float most = largest_sum(x, quads);
    // Where the factor would overflow, all is as good as zero. The bound is for what is not a number: its
    // entries mean nothing, but sums of them must not overflow. No number is below -63 times 1 + 2^-23.
    const F32x16 factor = broadcast(most > kLeastSum ? kMostSteps / most : 0.0f);
    const F32x16 high = broadcast(kMostSteps);
    const F32x16 sign0 = signs(0), sign1 = signs(1), sign2 = signs(2), sign3 = signs(3);
    const I32x16 zero = all_lanes(kTableZero);
    I32x16 total = all_lanes(0);
    for (int64_t q = 0; q < quads; ++q, x += 4, tables += 16) {
        // Times a sign is exact: fused or not, sums are rounded once.
        const F32x16 first = fma(broadcast(x[1]), sign1, broadcast(x[0]) * sign0);
        const F32x16 second = fma(broadcast(x[3]), sign3, broadcast(x[2]) * sign2);
        const I32x16 entries = nearest(min((first + second) * factor, high));
        store_u8(tables, entries + zero);
        total = total + entries;
    }
    int32_t lanes[kLanes];
    store_i32(lanes, total);
    sum = lanes[15];
    return most / kMostSteps;
}

// `x` has room for the rows, [rows][padded].
void tabulate(const IntShape& shape, const RowSource& source, const LutRows& rows, float* x) {
    const int64_t width = shape.width, padded = shape.padded(), groups = shape.groups();
    for_each_row(rows.rows, 4 * padded, [&](int64_t row) {
        float* to = x + row * padded;
        read_row(source, row, width, to);
        memset(to + width, 0, static_cast<size_t>(padded - width) * 4);
    });
    const int64_t inputs = shape.group_chunks(0) * kChunk;
    for_each_row(rows.rows * groups, 16 * inputs, [&](int64_t i) {
        const int64_t g = i % groups, first = i / groups * padded + g * inputs;
        rows.scales[i] = tabulate_group(x + first, shape.group_chunks(g) * kChunk / 4,
                                        rows.tables + first * 4, rows.sums[i]);
    });
}

}  // namespace
}  // namespace headrace::HR_LEVEL
