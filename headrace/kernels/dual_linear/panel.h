// Many rows: a slice of a group's codes is unpacked once, and stays in the cache for all rows.
#pragma once

#include "dual_linear/sums.h"
#include "headrace/parallel.h"

namespace headrace::HR_LEVEL {
namespace {

#if defined(HR_LEVEL_AVX512)
constexpr int kPanelRows = 6, kPanelTiles = 4;  // 24 registers of sums, 4 of weights
#else
constexpr int kPanelRows = 4, kPanelTiles = 1;  // AVX2: 8 registers of sums, 2 of weights
#endif
constexpr int64_t kPassRows = 384;  // rows per pass over a block: their totals stay in the second-level cache
constexpr int64_t kSliceChunks = 8;  // whose codes stay in the first-level cache: 16 KiB

// Some chunks of a group, quad after quad of all four tiles.
void unpack_slice(const uint8_t* chunks, int64_t count, uint8_t* panel) {
    constexpr int64_t kTileBytes = 4 * 64;
    for (int64_t i = 0; i < count * kTiles; ++i) {
        const uint8_t* tile = chunks + i * kTileBytes;
        for (int64_t line = 0; line < kTileBytes; line += 64) prefetch(tile + line + kAhead);
        Bytes quad[kQuads];
        unpack<4>(tile, quad);
        for (int64_t k = 0; k < kQuads; ++k)
            store_bytes(panel + ((i / kTiles * kQuads + k) * kTiles + i % kTiles) * 64, quad[k]);
    }
}

// What a slice is multiplied by. Only the first of a group's slices takes the zero points into account.
struct Slice {
    const int8_t* codes[kPanelRows];
    int32_t row_sums[kPanelRows];
    int64_t chunks;
};

inline void slice_rows(const Group& group, const uint8_t* panel, const Slice& slice, I32x16* totals) {
    for (int64_t t = 0; t < kTiles; t += kPanelTiles) {
        I32x16 total[kPanelRows][kPanelTiles];
        Sums sums[kPanelRows][kPanelTiles];
        for (int u = 0; u < kPanelTiles; ++u) {
            const Head head = group.head(t + u);
            for (int r = 0; r < kPanelRows; ++r) {
                total[r][u] = totals[r * kTiles + t + u];
                sums[r][u] = start(total[r][u], head, slice.row_sums[r]);
            }
        }
        const uint8_t* p = panel + t * 64;
        for (int64_t c = 0; c < slice.chunks; ++c) {
            for (int64_t k = c * kQuads; k < (c + 1) * kQuads; ++k, p += kTiles * 64) {
                Bytes quad[kPanelTiles];
                for (int u = 0; u < kPanelTiles; ++u) quad[u] = load_bytes(p + 64 * u);
                for (int r = 0; r < kPanelRows; ++r) {
                    const int32_t four = load_four(slice.codes[r] + 4 * k);
                    for (int u = 0; u < kPanelTiles; ++u) sums[r][u] = add_quad(sums[r][u], quad[u], four);
                }
            }
            if constexpr (kEveryChunk) {
                for (int u = 0; u < kPanelTiles; ++u) {
                    const Head head = group.head(t + u);
                    for (int r = 0; r < kPanelRows; ++r) {
                        total[r][u] = add_sums(total[r][u], sums[r][u], head);
                        sums[r][u] = no_sums();
                    }
                }
            }
        }
        for (int u = 0; u < kPanelTiles; ++u) {
            const Head head = group.head(t + u);
            for (int r = 0; r < kPanelRows; ++r)
                totals[r * kTiles + t + u] =
                    kEveryChunk ? total[r][u] : add_sums(total[r][u], sums[r][u], head);
        }
    }
}

void pass_rows(const DualLinear& a, int64_t block, int64_t first_row, int64_t count) {
    const DualShape& shape = a.shape;
    const int64_t padded_rows = (count + kPanelRows - 1) / kPanelRows * kPanelRows;
    constexpr int64_t kPanelBytes = kSliceChunks * kChunk * kBlock;
    uint8_t* panel = static_cast<uint8_t*>(scratch(Scratch::piece, kPanelBytes + padded_rows * kBlock * 4));
    I32x16* totals = reinterpret_cast<I32x16*>(panel + kPanelBytes);
    memset(totals, 0, static_cast<size_t>(padded_rows * kBlock * 4));
    const uint8_t* at = first_group(a, block);
    for (int64_t g = 0, input = 0; g < shape.groups(); ++g) {
        const Group group(shape, at, g);
        for (int64_t c = 0; c < group.count; c += kSliceChunks) {
            Slice slice;
            slice.chunks = group.count - c < kSliceChunks ? group.count - c : kSliceChunks;
            unpack_slice(group.chunks + c * shape.chunk_bytes(), slice.chunks, panel);
            for (int64_t row = 0; row < count; row += kPanelRows) {
                for (int64_t r = 0; r < kPanelRows; ++r) {  // rows beyond the last one repeat it, are dropped
                    const int64_t from = first_row + (row + r < count ? row + r : count - 1);
                    slice.codes[r] = a.rows.codes + from * a.rows.stride + input + c * kChunk;
                    slice.row_sums[r] = c == 0 ? a.rows.sums[from * shape.groups() + g] : 0;
                }
                slice_rows(group, panel, slice, totals + row * kTiles);
            }
        }
        input += group.count * kChunk;
        at = group.end(shape);
    }
    for (int64_t row = 0; row < count; ++row) finish(a, block, first_row + row, totals + row * kTiles);
}

void many_rows(const DualLinear& a, int64_t block) {
    for (int64_t row = 0; row < a.rows.rows; row += kPassRows)
        pass_rows(a, block, row, a.rows.rows - row < kPassRows ? a.rows.rows - row : kPassRows);
}

}  // namespace
}  // namespace headrace::HR_LEVEL
