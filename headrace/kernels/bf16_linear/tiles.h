// Rows by matrix tiles.
#pragma once

#include "bf16_linear/rows.h"
#include "headrace/amx.h"
#include "headrace/simd_int.h"

namespace headrace::HR_LEVEL {
namespace {

constexpr int64_t kTileRows = 16;

template <class Weights>
inline int64_t most_chunks(const Shape& shape) {  // that are asked for at once
    return shape.chunks();
}

// Thirty-two rows (or fewer) of one block, over all inputs: sums stay in tiles.
void multiply_rows(const Bf16Rows& a, const bf16* block, int64_t first, int64_t count, float* sums) {
    const int64_t bytes = a.stride * 2;
    const bool both = count > kTileRows;
    for (int64_t t = 0; t < Shape::kTiles; t += 2) {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
        const bf16* w = block + t * Shape::kTileItems;
        const bf16* x = static_cast<const bf16*>(a.rows) + first * a.stride;
        for (int64_t c = 0; c < a.shape.chunks();
             ++c, w += Shape::kTiles * Shape::kTileItems, x += a.chunk_items) {
            for (int64_t line = 0; line < 2 * kPairs; ++line)
                prefetch(w + line * 32 + 2 * Shape::kTiles * Shape::kTileItems);
            _tile_loadd(4, x, bytes);
            _tile_loadd(6, w, 64);
            _tile_loadd(7, w + Shape::kTileItems, 64);
            _tile_dpbf16ps(0, 4, 6);
            _tile_dpbf16ps(1, 4, 7);
            if (both) {
                _tile_loadd(5, x + kTileRows * a.stride, bytes);
                _tile_dpbf16ps(2, 5, 6);
                _tile_dpbf16ps(3, 5, 7);
            }
        }
        constexpr int64_t kStride = Shape::kBlock * 4;
        _tile_stored(0, sums + t * Shape::kTile, kStride);
        _tile_stored(1, sums + (t + 1) * Shape::kTile, kStride);
        if (both) {
            _tile_stored(2, sums + kTileRows * Shape::kBlock + t * Shape::kTile, kStride);
            _tile_stored(3, sums + kTileRows * Shape::kBlock + (t + 1) * Shape::kTile, kStride);
        }
    }
}

template <class Weights>
void multiply_block(const Bf16Rows& a, Weights& weights, int64_t block) {
    const bf16* w = weights.chunks(0, a.shape.chunks());
    alignas(64) float sums[2 * kTileRows * Shape::kBlock];
    const Tiles tiles(a.count < kTileRows ? a.count : kTileRows, 64);
    for (int64_t first = 0; first < a.count; first += 2 * kTileRows) {
        const int64_t count = a.count - first < 2 * kTileRows ? a.count - first : 2 * kTileRows;
        multiply_rows(a, w, first, count, sums);
        for (int64_t r = 0; r < count; ++r)
            for (int64_t t = 0; t < Shape::kTiles; ++t)
                write_outputs(a.end, first + r, block * Shape::kBlock + t * Shape::kTile,
                              load(sums + r * Shape::kBlock + t * Shape::kTile));
    }
}

}  // namespace
}  // namespace headrace::HR_LEVEL
