// Rows of activations to tables. Compiled once per level.
#pragma once

#include "headrace/lookup.h"
#include "headrace/parallel.h"
#include "headrace/product.h"
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
    for (int64_t q = 0; q < quads; q += 4, x += kLanes) {
        const F32x16 size = magnitude(load(x));
        const F32x16 first = repeated<0>(size) + repeated<1>(size);
        const F32x16 second = repeated<2>(size) + repeated<3>(size);
        most = max(first + second, most);
    }
    return largest(most);
}

// Returns the scale; `sum` becomes that of the entries 15. Four tables at a time, a lane of each four for two
// signs: an entry's first two, or its last two.
inline float tabulate_group(const float* x, int64_t quads, uint8_t* tables, int32_t& sum) {
    const float most = largest_sum(x, quads);
    // Where the factor would overflow, all is as good as zero. The bound is for what is not a number: its
    // entries mean nothing, but sums of them must not overflow. No number is below -63 times 1 + 2^-23.
    const F32x16 factor = broadcast(most > kLeastSum ? kMostSteps / most : 0.0f);
    const F32x16 high = broadcast(kMostSteps), sign0 = signs(0), sign1 = signs(1);
    I32x16 total = all_lanes(0);
    for (int64_t q = 0; q < quads; q += 4, x += kLanes, tables += 64) {
        // Times a sign is exact: fused or not, sums are rounded once.
        const F32x16 v = load(x);
        const F32x16 first = fma(repeated<1>(v), sign1, repeated<0>(v) * sign0);
        const F32x16 second = fma(repeated<3>(v), sign1, repeated<2>(v) * sign0);
        auto entries = [&](F32x16 of_last) { return nearest(min((first + of_last) * factor, high)); };
        const I32x16 last = entries(repeated<3>(second));
        total = total + last;
        store_bytes(tables, bytes_of<kTableZero>(entries(repeated<0>(second)), entries(repeated<1>(second)),
                                                 entries(repeated<2>(second)), last));
    }
    int32_t lanes[kLanes];
    store_i32(lanes, total);
    sum = lanes[3] + lanes[7] + lanes[11] + lanes[15];
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
