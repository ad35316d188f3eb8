// Codes into the planes of a tile. Compiled once per level.
#pragma once

#include "headrace/transpose.h"
#include "int_linear/kernel.h"

namespace headrace::HR_LEVEL {
namespace {

// Codes of 16 outputs x 32 inputs, rows `stride` bytes apart, as the planes of one tile.
inline void write_tile(int bits, const uint8_t* codes, int64_t stride, uint8_t* tile) {
    uint32_t quads[kQuads][kTile];
    transpose(codes, stride, quads);
    if (bits == 8) {
        memcpy(tile, quads, sizeof quads);
        return;
    }
    for (int width = 4, low = 0; width > 0; low += bits & width, width /= 2) {
        if (!(bits & width)) continue;
        const uint32_t mask = ((1u << width) - 1) * 0x01010101;
        for (int i = 0; i < width; ++i, tile += 64) {
            uint32_t plane[kTile] = {};
            for (int quad = i, to = 0; quad < kQuads; quad += width, to += width)
                for (int64_t lane = 0; lane < kTile; ++lane)
                    plane[lane] |= (quads[quad][lane] >> low & mask) << to;
            memcpy(tile, plane, sizeof plane);
        }
    }
}

}  // namespace
}  // namespace headrace::HR_LEVEL
