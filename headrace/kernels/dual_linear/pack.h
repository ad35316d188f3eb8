// Floats rounded to nearest, twice, into packed blocks. Compiled once per level.
//
// Sixteen outputs at a time, and each of them row by row: first to w8, which stay in scratch as floats, then
// group by group to codes. __init__.py states the arithmetic; every step is one operation in float32, so all
// levels and PyTorch agree.
//
// Bounds: the source read twice (the second time from the cache), the packed bytes written once.
#pragma once

#include "dual_linear/kernel.h"
#include "headrace/parallel.h"
#include "int_linear/codes.h"
#include "int_linear/write_tile.h"

namespace headrace::HR_LEVEL {
namespace {

// Leaves room for half a step, so that step * (code - zero) is a signed byte.
inline float most_w8(int bits) {
    return bits == 4 ? 119 : 111;
}

template <class T>
inline F32x16 load_up_to(const T* x, int64_t n) {
    return n >= kLanes ? load(x) : load_first(x, n);
}

// Writes the w8 of a row, and zeros up to `padded`. Returns their scale; negative if a weight is not finite.
template <class T>
float round_row(const T* x, const DualShape& shape, float* w8) {
    const int64_t width = shape.width, padded = shape.padded();
    const F32x16 nothing = broadcast(0);
    F32x16 most = nothing, bad = nothing;
    for (int64_t i = 0; i < width; i += kLanes) {
        const F32x16 v = load_up_to(x + i, width - i);
        most = max(magnitude(v), most);
        bad = fma(v, nothing, bad);
    }
    if (!(sum(bad) == 0)) return -1;
    float scale = largest(most) / most_w8(shape.bits);
    if (scale < 0x1p-126f) scale = 0;
    const F32x16 factor = broadcast(scale > 0 ? 1 / scale : 0);
    for (int64_t i = 0; i < padded; i += kLanes)
        store(w8 + i, i < width ? to_float(nearest(load_up_to(x + i, width - i) * factor)) : nothing);
    return scale;
}

// w8 is nearest(w8 * factor) + zero, and stands for step * (code - zero).
struct Grid {
    float step, factor, zero;

    uint8_t head(int bits) const {
        return static_cast<uint8_t>(static_cast<int>(step) - 1 + (static_cast<int>(zero) << (8 - bits)));
    }
};

inline Grid grid_of(const float* w8, int64_t padded, float top) {
    F32x16 low = broadcast(0), high = broadcast(0);
    for (int64_t i = 0; i < padded; i += kLanes) {
        low = min(load(w8 + i), low);
        high = max(load(w8 + i), high);
    }
    const float least = -largest(broadcast(0) - low), range = largest(high) - least;
    const float step = range > top ? __builtin_rintf(range / top) : 1, factor = 1 / step;
    const float zero = __builtin_rintf(-least * factor);
    return {step, factor, zero < top ? zero : top};
}

inline void round_group(const float* w8, int64_t count, const Grid& grid, float top, uint8_t* codes) {
    const F32x16 factor = broadcast(grid.factor);
    const F32x16 least = broadcast(-grid.zero), most = broadcast(top - grid.zero);
    const I32x16 zero = nearest(broadcast(grid.zero));
    for (int64_t i = 0; i < count; i += kLanes)
        store_u8(codes + i, nearest(max(min(load(w8 + i) * factor, most), least)) + zero);
    for (int64_t i = count; i % kLanes; ++i) codes[i] = 0;
}

// One tile of outputs. False if some weights are not finite.
template <class T>
bool pack_tile(const DualShape& shape, const T* rows, int64_t tile, uint8_t* packed) {
    const int64_t padded = shape.padded(),
                  group_bytes = shape.head_bytes() + shape.group_chunks(0) * shape.chunk_bytes();
    const float top = static_cast<float>(shape.top());
    float* w8 = static_cast<float*>(scratch(Scratch::piece, padded * (4 + kTile)));
    uint8_t* codes = reinterpret_cast<uint8_t*>(w8 + padded);
    memset(codes, 0, static_cast<size_t>(kTile * padded));
    uint8_t* const block = packed + tile / kTiles * shape.block_bytes();
    uint8_t* const groups = block + shape.top_bytes();
    bool finite = true;
    for (int64_t lane = 0; lane < kTile; ++lane) {
        const int64_t output = tile * kTile + lane, at = tile % kTiles * kTile + lane;
        float scale = 0;
        if (output < shape.outputs) scale = round_row(rows + output * shape.width, shape, w8);
        finite = finite && scale >= 0;
        memcpy(block + at * 4, &scale, 4);
        for (int64_t g = 0, first = 0; first < shape.width; ++g, first += shape.group) {
            Grid grid{1, 1, 0};
            if (scale > 0) {
                const int64_t count = shape.width - first < shape.group ? shape.width - first : shape.group;
                grid = grid_of(w8 + first, shape.group_chunks(g) * kChunk, top);
                round_group(w8 + first, count, grid, top, codes + lane * padded + first);
            }
            groups[g * group_bytes + at] = grid.head(shape.bits);
        }
    }
    const uint8_t* from = codes;
    for (int64_t g = 0; g < shape.groups(); ++g) {
        uint8_t* to = groups + g * group_bytes + shape.head_bytes() + tile % kTiles * 64 * shape.bits;
        for (int64_t c = 0; c < shape.group_chunks(g); ++c, to += shape.chunk_bytes(), from += kChunk)
            write_tile(shape.bits, from, padded, to);
    }
    return finite;
}

bool round(const DualShape& shape, const Floats& rows, uint8_t* packed) {
    bool finite = true;
    with_type(rows, [&](const auto* x) {
        in_pieces(shape.blocks() * kTiles, 1, [&](int64_t begin, int64_t end) {
            for (int64_t tile = begin; tile < end; ++tile)
                if (!pack_tile(shape, x, tile, packed)) __atomic_store_n(&finite, false, __ATOMIC_RELAXED);
        });
    });
    return finite;
}

}  // namespace
}  // namespace headrace::HR_LEVEL
