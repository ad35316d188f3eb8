// Codes, or floats rounded to nearest, into packed blocks. Compiled once per level.
//
// Sixteen outputs at a time: their codes go into scratch row by row, and from there into planes, so that
// every number of the source is read in order. __init__.py states the arithmetic of rounding; every step is
// one operation in float32, so all levels and PyTorch agree.
//
// Bounds: the source read once, the packed bytes written once.
#pragma once

#include "headrace/parallel.h"
#include "int_linear/codes.h"
#include "int_linear/rounding.h"
#include "int_linear/write_tile.h"

namespace headrace::HR_LEVEL {
namespace {

// The outputs of one tile in their block.
struct TilePlace {
    const IntShape& shape;
    uint8_t* block;
    int64_t tile;

    TilePlace(const IntShape& shape, int64_t index, uint8_t* packed)
        : shape(shape), block(packed + index / kTiles * shape.block_bytes()), tile(index % kTiles) {}

    uint8_t* record(int64_t group) const {
        return block + group * (shape.head_bytes() + shape.group_chunks(0) * shape.chunk_bytes());
    }
    void put_head(int64_t group, int64_t lane, f16 scale, uint8_t zero) const {
        uint8_t* const head = record(group);
        memcpy(head + 2 * (tile * kTile + lane), &scale, sizeof scale);
        if (shape.zeros) head[2 * kBlock + tile * kTile + lane] = zero;
    }
    void put_codes(const uint8_t* codes) const {
        for (int64_t g = 0; g < shape.groups(); ++g) {
            uint8_t* to = record(g) + shape.head_bytes() + tile * 64 * shape.bits;
            for (int64_t c = 0; c < shape.group_chunks(g); ++c, to += shape.chunk_bytes(), codes += kChunk)
                write_tile(shape.bits, codes, shape.padded(), to);
        }
    }
};

// row(output, place, lane, codes) for each output of each tile writes its head and its codes.
template <class Row>
void pack_rows(const IntShape& shape, uint8_t* packed, const Row& row) {
    in_pieces(shape.blocks() * kTiles, 1, [&](int64_t begin, int64_t end) {
        auto* codes = static_cast<uint8_t*>(scratch(Scratch::piece, kTile * shape.padded()));
        for (int64_t tile = begin; tile < end; ++tile) {
            const TilePlace place(shape, tile, packed);
            memset(codes, 0, static_cast<size_t>(kTile * shape.padded()));
            for (int64_t lane = 0; lane < kTile; ++lane) {
                if (tile * kTile + lane < shape.outputs) {
                    row(tile * kTile + lane, place, lane, codes + lane * shape.padded());
                } else {
                    for (int64_t g = 0; g < shape.groups(); ++g) place.put_head(g, lane, {0}, 0);
                }
            }
            place.put_codes(codes);
        }
    });
}

void pack(const IntShape& shape, const IntCodes& from, uint8_t* packed) {
    pack_rows(shape, packed, [&](int64_t output, const TilePlace& place, int64_t lane, uint8_t* codes) {
        memcpy(codes, from.codes + output * shape.width, static_cast<size_t>(shape.width));
        for (int64_t g = 0, at = output * shape.groups(); g < shape.groups(); ++g, ++at)
            place.put_head(g, lane, {from.scales[at]}, from.zeros ? from.zeros[at] : uint8_t{0});
    });
}

template <class T>
Unfit round_rows(const IntShape& shape, const T* rows, uint8_t* packed) {
    bool finite = true, fits = true;
    pack_rows(shape, packed, [&](int64_t output, const TilePlace& place, int64_t lane, uint8_t* codes) {
        const T* row = rows + output * shape.width;
        for (int64_t g = 0, first = 0; first < shape.width; ++g, first += shape.group) {
            const int64_t count = shape.width - first < shape.group ? shape.width - first : shape.group;
            const Range range = range_of(row + first, count);
            const Grid grid = grid_of(shape, range);
            place.put_head(g, lane, grid.scale, static_cast<uint8_t>(grid.zero));
            round_group(row + first, count, grid, codes + first);
            if (!range.finite) __atomic_store_n(&finite, false, __ATOMIC_RELAXED);
            if (!grid.fits) __atomic_store_n(&fits, false, __ATOMIC_RELAXED);
        }
    });
    return !finite ? Unfit::not_finite : !fits ? Unfit::too_large : Unfit::nothing;
}

Unfit round(const IntShape& shape, const Floats& rows, uint8_t* packed) {
    return with_type(rows, [&](const auto* x) { return round_rows(shape, x, packed); });
}

}  // namespace
}  // namespace headrace::HR_LEVEL
