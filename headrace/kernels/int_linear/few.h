// A few rows: every code is read from memory once, unpacked in registers, and used by all of them.
#pragma once

#include "int_linear/codes.h"

namespace headrace::HR_LEVEL {
namespace {

template <int kBits, int kRows>
void few_rows(const IntLinear& a, int64_t block) {
    // Tiles whose sums are in registers together: as many sums as a dot product takes cycles.
    constexpr int kAtOnce = kRows == 1 ? 4 : kRows == 2 ? 2 : 1;
    const IntShape& shape = a.shape;
    const int8_t* codes[kRows];
    const int32_t* sums[kRows];
    for (int r = 0; r < kRows; ++r) {  // rows beyond the last one repeat it, and are dropped
        const int64_t row = r < a.rows.rows ? r : a.rows.rows - 1;
        codes[r] = a.rows.codes + row * a.rows.stride;
        sums[r] = a.rows.sums + row * shape.groups();
    }
    alignas(64) float totals[kRows][kBlock] = {};
    const uint8_t* at = a.packed + block * shape.block_bytes();
    for (int64_t g = 0, input = 0; g < shape.groups(); ++g) {
        const Record record(shape, at, g);
        for (int64_t t = 0; t < kTiles; t += kAtOnce) {
            I32x16 sum[kRows][kAtOnce];
            for (int r = 0; r < kRows; ++r)
                for (int u = 0; u < kAtOnce; ++u) sum[r][u] = start<kBits>(record, t + u, sums[r][g]);
            for (int64_t c = 0; c < record.count; ++c) {
                const uint8_t* chunk = record.chunks + c * 4 * 64 * kBits + t * 64 * kBits;
                for (int u = 0; u < kAtOnce; ++u) {
                    // in the order of memory, which is not that of reading: the processor follows nothing
                    // else
                    const uint8_t* next = record.chunks + (t * record.count + c * kAtOnce + u) * 64 * kBits;
                    for (int line = 0; line < kBits; ++line) prefetch(next + 64 * line + kAhead);
                    Bytes quad[kQuads];
                    unpack<kBits>(chunk + u * 64 * kBits, quad);
                    for (int k = 0; k < kQuads; ++k)
                        for (int r = 0; r < kRows; ++r)
                            sum[r][u] = dot<kBits>(sum[r][u], quad[k],
                                                   load_four(codes[r] + input + c * kChunk + 4 * k));
                }
            }
            for (int r = 0; r < kRows; ++r) {
                for (int u = 0; u < kAtOnce; ++u) {
                    float* total = totals[r] + (t + u) * kTile;
                    store(total, add_group(load(total), sum[r][u], record, t + u));
                }
            }
        }
        input += record.count * kChunk;
        at = record.end(shape);
    }
    for (int r = 0; r < kRows && r < a.rows.rows; ++r) finish(a, block, r, totals[r]);
}

}  // namespace
}  // namespace headrace::HR_LEVEL
