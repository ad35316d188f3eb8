// Weights as a checkpoint has them, rounded to bfloat16, their high bytes coded. Compiled once per level.
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

// The eight commonest high bytes, the smaller first of two that are equally common.
inline void choose_entries(const bf16* items, int64_t count, const Extent& extent, uint8_t* entries) {
    int64_t seen[256] = {};
    for (int64_t i = 0; i < count; ++i)
        if (extent.has(i)) ++seen[items[i].bits >> 8];
    for (int64_t e = 0; e < DfloatShape::kEntries; ++e) {
        int best = 0;
        for (int x = 1; x < 256; ++x)
            if (seen[x] > seen[best]) best = x;
        entries[e] = static_cast<uint8_t>(best);
        seen[best] = -1;
    }
}

// What pads a block: its commonest high byte. It is finite, and multiplied by 0.
inline void fill(bf16* items, int64_t count, const Extent& extent, uint8_t high) {
    for (int64_t i = 0; i < count; ++i)
        if (!extent.has(i)) items[i].bits = static_cast<uint16_t>(high << 8);
}

inline void put_code(uint8_t* tile, int64_t in_register, int64_t k, int code) {
    auto set = [&](int64_t r, int bits) {
        uint8_t& byte = tile[r * DfloatShape::kRegister + in_register];
        byte = static_cast<uint8_t>(byte | bits);
    };
    if (k < 6) {
        set(k / 2, code << k % 2 * 4);
    } else {
        for (int r = 0; r < 3; ++r) set(r, (code >> r & 1) << (k == 6 ? 3 : 7));
    }
}

// One chunk; returns where its escapes end.
inline uint8_t* pack_chunk(const bf16* items, const uint8_t* codes, uint8_t* planes, uint8_t* escapes) {
    memset(planes, 0, static_cast<size_t>(DfloatShape::kChunkBytes));
    uint8_t* at = escapes + 2;
    int64_t last = 0;
    auto escape = [&](int64_t place) {
        *at++ = static_cast<uint8_t>(place - last);
        *at++ = static_cast<uint8_t>(items[place].bits >> 8);
        last = place;
    };
    for (int64_t place = 0; place < DfloatShape::kChunkItems; ++place) {
        uint8_t* tile = planes + place / Shape::kTileItems * DfloatShape::kTileBytes;
        const int64_t k = place % Shape::kTileItems / DfloatShape::kRegister;
        const int64_t in_register = kept_at(place % DfloatShape::kRegister);
        tile[DfloatShape::kCodeBytes + k * DfloatShape::kRegister + in_register] =
            static_cast<uint8_t>(items[place].bits);
        const int code = codes[items[place].bits >> 8];
        if (code != kNoCode) {
            put_code(tile, in_register, k, code);
        } else {
            while (place - last > 255) escape(last + 255);
            escape(place);
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
    for (int64_t t = 0; t < Shape::kTiles; ++t) pack_tile(shape, weight, block * Shape::kTiles + t, items);
    const Extent extent{shape.outputs - block * Shape::kBlock, shape.width};
    memset(planes, 0, static_cast<size_t>(DfloatShape::kHeadBytes));
    choose_entries(items, shape.block_items(), extent, planes);
    fill(items, shape.block_items(), extent, planes[0]);
    uint8_t codes[256], *at = escapes;
    memset(codes, kNoCode, sizeof codes);
    for (int e = 0; e < DfloatShape::kEntries; ++e) codes[planes[e]] = static_cast<uint8_t>(e);
    for (int64_t c = 0; c < shape.chunks(); ++c)
        at = pack_chunk(items + c * DfloatShape::kChunkItems, codes,
                        planes + DfloatShape::kHeadBytes + c * DfloatShape::kChunkBytes, at);
    *size = at - escapes;
}

}  // namespace
}  // namespace headrace::HR_LEVEL
