// Weights as a checkpoint has them, rounded to bfloat16, their exponents coded. Compiled once per level.
#pragma once

#include "bf16_linear/pack.h"
#include "dfloat_linear/kernel.h"
#include "dfloat_linear/registers.h"

namespace headrace::HR_LEVEL {
namespace {

constexpr int kNoCode = 255;

// The outputs and inputs of a block that exist.
struct Extent {
    int64_t outputs, width;

    bool has(int64_t item) const {
        const int64_t chunk = item / DfloatShape::kChunkItems, place = item % DfloatShape::kChunkItems;
        const int64_t tile = place / Shape::kTileItems, pair = place % Shape::kTileItems / (2 * Shape::kTile);
        const int64_t output = tile * Shape::kTile + place / 2 % Shape::kTile;
        return output < outputs && chunk * Shape::kChunk + 2 * pair + place % 2 < width;
    }
};

inline int exponent_of(bf16 weight) {
    return weight.bits >> 7 & 0xff;
}

// The eight commonest exponents, the smaller first of two that are equally common. Infinities and NaN get no
// code: what pads a block stands for the first one, and must be a number.
inline void choose_entries(const bf16* items, int64_t count, const Extent& extent, uint8_t* entries) {
    int64_t seen[256] = {};
    for (int64_t i = 0; i < count; ++i)
        if (extent.has(i)) ++seen[exponent_of(items[i])];
    for (int64_t e = 0; e < DfloatShape::kEntries; ++e) {
        int best = 0;
        for (int x = 1; x < 255; ++x)
            if (seen[x] > seen[best]) best = x;
        entries[e] = static_cast<uint8_t>(best);
        seen[best] = -1;
    }
}

inline void put_code(uint8_t* tile, int64_t place, int code) {
    const int64_t k = place / DfloatShape::kRegister, j = kept_at(place % DfloatShape::kRegister);
    tile[k % 2 * 64 + j] = static_cast<uint8_t>(tile[k % 2 * 64 + j] | (code & 3) << k / 2 * 2);
    tile[128 + j] = static_cast<uint8_t>(tile[128 + j] | code >> 2 << k);
}

// One chunk; returns where its escapes end.
inline uint8_t* pack_chunk(const bf16* items, int64_t first, const Extent& extent, const uint8_t* codes,
                           uint8_t* planes, uint8_t* escapes) {
    memset(planes, 0, static_cast<size_t>(DfloatShape::kChunkBytes));
    uint8_t* at = escapes + 2;
    int64_t last = 0;
    for (int64_t place = 0; place < DfloatShape::kChunkItems; ++place) {
        if (!extent.has(first + place)) continue;
        const bf16 weight = items[place];
        const int exponent = exponent_of(weight), code = codes[exponent];
        uint8_t* tile = planes + place / Shape::kTileItems * DfloatShape::kTileBytes;
        const int64_t in_tile = place % Shape::kTileItems, in_register = in_tile % DfloatShape::kRegister;
        tile[DfloatShape::kCodeBytes + in_tile - in_register + kept_at(in_register)] =
            static_cast<uint8_t>(weight.bits >> 8 & 0x80) | (weight.bits & 0x7f);
        if (code != kNoCode) {
            put_code(tile, in_tile, code);
        } else {
            for (; place - last > 255; last += 255) {
                *at++ = 255;
                *at++ = static_cast<uint8_t>(extent.has(first + last + 255)
                                                 ? exponent_of(items[last + 255])
                                                 : 0);
            }
            *at++ = static_cast<uint8_t>(place - last);
            *at++ = static_cast<uint8_t>(exponent);
            last = place;
        }
    }
    const uint16_t count = static_cast<uint16_t>((at - escapes - 2) / 2);
    memcpy(escapes, &count, sizeof count);
    return at;
}

template <class T>
void pack_block(const DfloatShape& shape, const T* weight, int64_t block, uint8_t* planes, uint8_t* escapes,
                int64_t* size) {
    bf16* items = static_cast<bf16*>(scratch(Scratch::piece, shape.block_items() * 2));
    for (int64_t t = 0; t < Shape::kTiles; ++t)
        pack_tile(shape, weight, block * Shape::kTiles + t, items);
    const Extent extent{shape.outputs - block * Shape::kBlock, shape.width};
    memset(planes, 0, static_cast<size_t>(DfloatShape::kHeadBytes));
    choose_entries(items, shape.block_items(), extent, planes);
    uint8_t codes[256], *at = escapes;
    memset(codes, kNoCode, sizeof codes);
    for (int e = 0; e < DfloatShape::kEntries; ++e) codes[planes[e]] = static_cast<uint8_t>(e);
    for (int64_t c = 0; c < shape.chunks(); ++c)
        at = pack_chunk(items + c * DfloatShape::kChunkItems, c * DfloatShape::kChunkItems, extent, codes,
                        planes + DfloatShape::kHeadBytes + c * DfloatShape::kChunkBytes, at);
    *size = at - escapes;
}

}  // namespace
}  // namespace headrace::HR_LEVEL
