// Weights as a checkpoint has them, rounded to bfloat16 and put in the order of products. Compiled once per
// level.
#pragma once

#include "bf16_linear/rows.h"
#include "headrace/transpose.h"

namespace headrace::HR_LEVEL {
namespace {

// The next 32 inputs of one output, of which `count` exist.
template <class T>
inline void read_inputs(const T* weight, int64_t count, bf16* out) {
    for (int64_t i = 0; i < Shape::kChunk && i < count; i += kLanes) {
        const int64_t n = count - i;
        store(out + i, n >= kLanes ? load(weight + i) : load_first(weight + i, n));
    }
}
inline void read_inputs(const bf16* weight, int64_t count, bf16* out) {
    if (count >= Shape::kChunk) {
        memcpy(out, weight, Shape::kChunk * sizeof(bf16));
    } else {
        memcpy(out, weight, static_cast<size_t>(count) * sizeof(bf16));
    }
}

// Sixteen outputs, to their place in their block.
template <class T>
void pack_tile(const Shape& shape, const T* weight, int64_t tile, bf16* block) {
    bf16* to = block + tile % Shape::kTiles * Shape::kTileItems;
    const int64_t first = tile * Shape::kTile, rest = shape.outputs - first;
    for (int64_t i = 0; i < shape.width; i += Shape::kChunk, to += Shape::kTiles * Shape::kTileItems) {
        bf16 rows[Shape::kTile][Shape::kChunk] = {};
        for (int64_t o = 0; o < Shape::kTile && o < rest; ++o)
            read_inputs(weight + (first + o) * shape.width + i, shape.width - i, rows[o]);
        uint32_t pairs[kPairs][Shape::kTile];
        transpose(rows, sizeof rows[0], pairs);
        memcpy(to, pairs, sizeof pairs);
    }
}

}  // namespace
}  // namespace headrace::HR_LEVEL
