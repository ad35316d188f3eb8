// A few rows: every code is read from memory once, unpacked in registers, and used by all of them.
#pragma once

#include "dual_linear/sums.h"

namespace headrace::HR_LEVEL {
namespace {

template <int kRows>
void few_rows(const DualLinear& a, int64_t block) {
    // Tiles whose sums are in registers together: as many sums as a dot product takes cycles.
    constexpr int kAtOnce = kRows == 1 ? 4 : kRows == 2 ? 2 : 1;
    constexpr int kLines = 4;  // of 64 bytes, per tile of a chunk
    const DualShape& shape = a.shape;
    const int8_t* codes[kRows];
    const int32_t* row_sums[kRows];
    for (int r = 0; r < kRows; ++r) {  // rows beyond the last one repeat it, and are dropped
        const int64_t row = r < a.rows.rows ? r : a.rows.rows - 1;
        codes[r] = a.rows.codes + row * a.rows.stride;
        row_sums[r] = a.rows.sums + row * shape.groups();
    }
    I32x16 totals[kRows][kTiles];
    for (auto& row : totals)
        for (I32x16& total : row) total = all_lanes(0);
    const uint8_t* at = first_group(a, block);
    for (int64_t g = 0, input = 0; g < shape.groups(); ++g) {
        const Group group(shape, at, g);
        for (int64_t t = 0; t < kTiles; t += kAtOnce) {
            I32x16 total[kRows][kAtOnce];
            Sums sums[kRows][kAtOnce];
            for (int r = 0; r < kRows; ++r) {
                for (int u = 0; u < kAtOnce; ++u) {
                    total[r][u] = totals[r][t + u];
                    sums[r][u] = start(total[r][u], group.head(t + u), row_sums[r][g]);
                }
            }
            for (int64_t c = 0; c < group.count; ++c) {
                for (int u = 0; u < kAtOnce; ++u) {
                    // in the order of memory, which is not that of reading: the processor follows nothing
                    // else
                    const uint8_t* next = group.chunks + (t * group.count + c * kAtOnce + u) * 64 * kLines;
                    for (int line = 0; line < kLines; ++line) prefetch(next + 64 * line + kAhead);
                    Bytes quad[kQuads];
                    unpack<4>(group.chunks + (c * kTiles + t + u) * 64 * kLines, quad);
                    for (int r = 0; r < kRows; ++r) {
                        for (int k = 0; k < kQuads; ++k)
                            sums[r][u] = add_quad(sums[r][u], quad[k],
                                                  load_four(codes[r] + input + c * kChunk + 4 * k));
                        if constexpr (kEveryChunk) {
                            total[r][u] = add_sums(total[r][u], sums[r][u], group.head(t + u));
                            sums[r][u] = no_sums();
                        }
                    }
                }
            }
            for (int r = 0; r < kRows; ++r)
                for (int u = 0; u < kAtOnce; ++u)
                    totals[r][t + u] =
                        kEveryChunk ? total[r][u] : add_sums(total[r][u], sums[r][u], group.head(t + u));
        }
        input += group.count * kChunk;
        at = group.end(shape);
    }
    for (int r = 0; r < kRows && r < a.rows.rows; ++r) finish(a, block, r, totals[r]);
}

}  // namespace
}  // namespace headrace::HR_LEVEL
