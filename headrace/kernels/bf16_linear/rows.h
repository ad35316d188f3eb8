// Rows of activations, rounded to bfloat16. Compiled once per level.
#pragma once

#include "bf16_linear/kernel.h"
#include "headrace/parallel.h"

namespace headrace::HR_LEVEL {
namespace {

using Shape = Bf16Shape;
constexpr int64_t kPairs = Shape::kChunk / 2;

// Where instructions multiply floats, inputs are kept as floats: they are read once for every block.
#if defined(HR_LEVEL_AVX512)
using RowItem = bf16;
#else
using RowItem = float;
#endif

// Weights that lie packed in memory. Others are made as they are asked for (dfloat_linear/decode.h): chunk by
// chunk, in order, and again from the first one on for each pass of rows.
struct Packed {
    static constexpr int64_t kSlice = 4;  // chunks of a block that all rows pass together: first-level cache
    static constexpr int64_t kLine = 64;  // bytes of memory that 32 weights are read from
    const bf16* block;

    // `count` chunks from chunk `first` on; they last until the next call.
    const bf16* chunks(int64_t first, int64_t) const {
        return block + first * Shape::kTiles * Shape::kTileItems;
    }
    // What is read a while after chunk `first`.
    const char* ahead(int64_t first) const {
        constexpr int64_t kAhead = 16384;
        return reinterpret_cast<const char*>(chunks(first, 0)) + kAhead;
    }
};

inline void store_rounded(bf16* p, F32x16 x) {
    store(p, x);
}
inline void store_rounded(float* p, F32x16 x) {
    bf16 part[kLanes];
    store(part, x);
    store(p, load(part));
}

void read_rows(const Bf16Rows& a) {
    for_each_row(a.count, 4 * a.shape.width, [&](int64_t row) {
        const int64_t padded = a.shape.chunks() * Shape::kChunk;
        float* x = static_cast<float*>(scratch(Scratch::piece, padded * 4));
        for (int64_t i = a.shape.width / kLanes * kLanes; i < padded; ++i) x[i] = 0;
        read_row(a.source, row, a.shape.width, x);
        RowItem* out = static_cast<RowItem*>(a.rows) + row * a.stride;
        for (int64_t i = 0; i < padded; i += kLanes)
            store_rounded(out + i / Shape::kChunk * a.chunk_items + i % Shape::kChunk, load(x + i));
    });
}

}  // namespace
}  // namespace headrace::HR_LEVEL
