// Codes, or floats rounded to nearest, into packed bit planes. Compiled once per level.
//
// write_codes comes from the header of the order of planes. A block of 64 outputs at a time: their codes go
// into scratch row by row, and from there into planes.
// __init__.py states the arithmetic of rounding; every step is one operation in float32, so all levels and
// PyTorch agree.
//
// Bounds: the source read once, the packed bytes written once.
#pragma once

#include "headrace/parallel.h"
#include "int_linear/rounding.h"
#include "lut_linear/kernel.h"

namespace headrace::HR_LEVEL {
namespace {

// One output in its block.
struct OutputPlace {
    const IntShape& shape;
    uint8_t* block;
    int64_t lane;

    uint8_t* record(int64_t group) const {
        return block + group * (shape.head_bytes() + shape.group_chunks(0) * shape.chunk_bytes());
    }
    void put_scale(int64_t group, f16 scale) const { memcpy(record(group) + 2 * lane, &scale, sizeof scale); }
    void put_codes(const uint8_t* codes) const {
        for (int64_t g = 0; g < shape.groups(); ++g, codes += shape.group)
            write_codes(shape.bits, codes, shape.group_chunks(g) * kChunk, lane,
                        record(g) + shape.head_bytes());
    }
};

// row(output, place, codes) writes an output's scales and codes; those of the padding are 0.
template <class Row>
void pack_outputs(const IntShape& shape, uint8_t* packed, const Row& row) {
    in_pieces(shape.blocks(), 1, [&](int64_t begin, int64_t end) {
        auto* codes = static_cast<uint8_t*>(scratch(Scratch::piece, shape.padded()));
        for (int64_t output = begin * kBlock; output < end * kBlock; ++output) {
            const OutputPlace place{shape, packed + output / kBlock * shape.block_bytes(), output % kBlock};
            memset(codes, 0, static_cast<size_t>(shape.padded()));
            if (output < shape.outputs)
                row(output, place, codes);
            else
                for (int64_t g = 0; g < shape.groups(); ++g) place.put_scale(g, {0});
            place.put_codes(codes);
        }
    });
}

void pack(const IntShape& shape, const IntCodes& from, uint8_t* packed) {
    pack_outputs(shape, packed, [&](int64_t output, const OutputPlace& place, uint8_t* codes) {
        memcpy(codes, from.codes + output * shape.width, static_cast<size_t>(shape.width));
        for (int64_t g = 0, at = output * shape.groups(); g < shape.groups(); ++g, ++at)
            place.put_scale(g, {from.scales[at]});
    });
}

// Whether each weight is nearly -most, 0 or most.
template <class T>
inline bool ternary(const T* x, int64_t count, float most) {
    const F32x16 top = broadcast(most);
    F32x16 error = broadcast(0);
    for (int64_t i = 0; i < count; i += kLanes) {
        const F32x16 size = magnitude(load_up_to(x + i, count - i));
        error = max(min(size, top - size), error);
    }
    return largest(error) <= most * 0x1p-6f;
}

// Twice the mean magnitude: a code of one bit stands for plus or minus half of it.
template <class T>
inline float binary_scale(const T* x, int64_t count) {
    F32x16 total = broadcast(0);
    for (int64_t i = 0; i < count; i += kLanes) total = total + magnitude(load_up_to(x + i, count - i));
    return 2 * (sum(total) / static_cast<float>(count));
}

template <class T>
inline void round_signs(const T* x, int64_t count, uint8_t* codes) {
    const F32x16 zero = broadcast(0), one = broadcast(1);
    for (int64_t i = 0; i < count; i += kLanes)
        store_u8(codes + i, nearest(where_at_least(load_up_to(x + i, count - i), zero, one)));
    for (int64_t i = count; i % kLanes; ++i) codes[i] = 0;
}

// Returns the grid of a group, whose codes it writes.
template <class T>
Grid round_lut_group(const IntShape& shape, const T* x, int64_t count, const Range& range, uint8_t* codes) {
    if (shape.bits == 1) {
        round_signs(x, count, codes);
        return grid_of(to_f16(binary_scale(x, count)), 0, 1);
    }
    Grid grid = grid_of(shape, range);
    const float most = range.high > -range.low ? range.high : -range.low;
    if (shape.bits == 2 && grid.factor != 0 && ternary(x, count, most))
        grid = grid_of(to_f16(most), grid.zero, grid.top);
    round_group(x, count, grid, codes);
    return grid;
}

template <class T>
Unfit round_outputs(const IntShape& shape, const T* rows, uint8_t* packed) {
    bool finite = true, fits = true;
    pack_outputs(shape, packed, [&](int64_t output, const OutputPlace& place, uint8_t* codes) {
        const T* row = rows + output * shape.width;
        for (int64_t g = 0, first = 0; first < shape.width; ++g, first += shape.group) {
            const int64_t count = shape.width - first < shape.group ? shape.width - first : shape.group;
            const Range range = range_of(row + first, count);
            const Grid grid = round_lut_group(shape, row + first, count, range, codes + first);
            place.put_scale(g, grid.scale);
            if (!range.finite) __atomic_store_n(&finite, false, __ATOMIC_RELAXED);
            if (!grid.fits) __atomic_store_n(&fits, false, __ATOMIC_RELAXED);
        }
    });
    return !finite ? Unfit::not_finite : !fits ? Unfit::too_large : Unfit::nothing;
}

Unfit round(const IntShape& shape, const Floats& rows, uint8_t* packed) {
    return with_type(rows, [&](const auto* x) { return round_outputs(shape, x, packed); });
}

}  // namespace
}  // namespace headrace::HR_LEVEL
