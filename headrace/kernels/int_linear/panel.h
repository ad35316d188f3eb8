// Many rows by dot products: a group's codes are unpacked once, and stay in the cache for all rows.
#pragma once

#include "headrace/parallel.h"
#include "int_linear/codes.h"

namespace headrace::HR_LEVEL {
namespace {

#if defined(HR_LEVEL_AVX512)
constexpr int kPanelRows = 6, kPanelTiles = 4;  // 24 registers of sums, 4 of weights
#else
constexpr int kPanelRows = 4, kPanelTiles = 1;  // AVX2: 8 registers of sums, 2 of weights, 4 of scratch
#endif
constexpr int64_t kPassRows = 384;  // rows per pass over a block: their sums stay in the second-level cache

// A group's codes, quad after quad of all four tiles.
template <int kBits>
void unpack_panel(const Record& record, uint8_t* panel) {
    for (int64_t c = 0; c < record.count; ++c) {
        for (int64_t t = 0; t < kTiles; ++t) {
            const uint8_t* tile = record.chunks + (c * kTiles + t) * 64 * kBits;
            for (int line = 0; line < kBits; ++line) prefetch(tile + 64 * line + kAhead);
            Bytes quad[kQuads];
            unpack<kBits>(tile, quad);
            for (int k = 0; k < kQuads; ++k)
                store_bytes(panel + ((c * kQuads + k) * kTiles + t) * 64, quad[k]);
        }
    }
}

template <int kBits>
inline void panel_rows(const Record& record, const uint8_t* panel, const int8_t* const (&codes)[kPanelRows],
                       const int32_t (&row_sums)[kPanelRows], float* totals) {
    for (int64_t t = 0; t < kTiles; t += kPanelTiles) {
        I32x16 sum[kPanelRows][kPanelTiles];
        for (int r = 0; r < kPanelRows; ++r)
            for (int u = 0; u < kPanelTiles; ++u) sum[r][u] = start<kBits>(record, t + u, row_sums[r]);
        const uint8_t* p = panel + t * 64;
        for (int64_t k = 0; k < record.count * kQuads; ++k, p += kTiles * 64) {
            Bytes quad[kPanelTiles];
            for (int u = 0; u < kPanelTiles; ++u) quad[u] = load_bytes(p + 64 * u);
            for (int r = 0; r < kPanelRows; ++r) {
                const int32_t four = load_four(codes[r] + 4 * k);
                for (int u = 0; u < kPanelTiles; ++u) sum[r][u] = dot<kBits>(sum[r][u], quad[u], four);
            }
        }
        for (int r = 0; r < kPanelRows; ++r) {
            for (int u = 0; u < kPanelTiles; ++u) {
                float* total = totals + r * kBlock + (t + u) * kTile;
                store(total, add_group(load(total), sum[r][u], record, t + u));
            }
        }
    }
}

template <int kBits>
void pass_rows(const IntLinear& a, int64_t block, int64_t first_row, int64_t count) {
    const IntShape& shape = a.shape;
    const int64_t padded_rows = (count + kPanelRows - 1) / kPanelRows * kPanelRows;
    const int64_t panel_bytes = shape.group_chunks(0) * kChunk * kBlock;
    uint8_t* panel = static_cast<uint8_t*>(scratch(Scratch::piece, panel_bytes + padded_rows * kBlock * 4));
    float* totals = reinterpret_cast<float*>(panel + panel_bytes);
    memset(totals, 0, static_cast<size_t>(padded_rows * kBlock * 4));
    const uint8_t* at = a.packed + block * shape.block_bytes();
    for (int64_t g = 0, input = 0; g < shape.groups(); ++g) {
        const Record record(shape, at, g);
        unpack_panel<kBits>(record, panel);
        for (int64_t row = 0; row < count; row += kPanelRows) {
            const int8_t* codes[kPanelRows];
            int32_t row_sums[kPanelRows];
            for (int64_t r = 0; r < kPanelRows; ++r) {  // rows beyond the last one repeat it, and are dropped
                const int64_t from = first_row + (row + r < count ? row + r : count - 1);
                codes[r] = a.rows.codes + from * a.rows.stride + input;
                row_sums[r] = a.rows.sums[from * shape.groups() + g];
            }
            panel_rows<kBits>(record, panel, codes, row_sums, totals + row * kBlock);
        }
        input += record.count * kChunk;
        at = record.end(shape);
    }
    for (int64_t row = 0; row < count; ++row) finish(a, block, first_row + row, totals + row * kBlock);
}

template <int kBits>
void many_rows(const IntLinear& a, int64_t block) {
    for (int64_t row = 0; row < a.rows.rows; row += kPassRows)
        pass_rows<kBits>(a, block, row, a.rows.rows - row < kPassRows ? a.rows.rows - row : kPassRows);
}

}  // namespace
}  // namespace headrace::HR_LEVEL
