// Floats rounded to codes, a group at a time. Compiled once per level.
//
// The arithmetic is that of __init__.py; every step is one operation in float32, so all levels and PyTorch
// agree.
#pragma once

#include "headrace/simd_math.h"
#include "int_linear/kernel.h"

namespace headrace::HR_LEVEL {
namespace {

template <class T>
inline F32x16 load_up_to(const T* x, int64_t n) {
    return n >= kLanes ? load(x) : load_first(x, n);
}

// The numbers of a group, zero among them.
struct Range {
    float low, high;
    bool finite;
};

template <class T>
inline Range range_of(const T* x, int64_t count) {
    const F32x16 nothing = broadcast(0);
    F32x16 low = nothing, high = nothing, bad = nothing;
    for (int64_t i = 0; i < count; i += kLanes) {
        const F32x16 v = load_up_to(x + i, count - i);
        low = min(v, low);
        high = max(v, high);
        bad = fma(v, nothing, bad);
    }
    return {-largest(nothing - low), largest(high), sum(bad) == 0};
}

// A code is nearest(x * factor) + zero, and stands for scale * (code - zero).
struct Grid {
    float factor, zero, top;
    f16 scale;
    bool fits;
};

// Codes up to `top`, of which `zero` stands for 0.
inline Grid grid_of(f16 scale, float zero, float top) {
    return {1 / to_float(scale), zero, top, scale, (scale.bits & 0x7c00) != 0x7c00};
}

inline Grid grid_of(const IntShape& shape, const Range& range) {
    const float top = static_cast<float>((1 << shape.bits) - 1),
                middle = static_cast<float>(1 << (shape.bits - 1));
    const float extreme = range.high > -range.low ? range.high : range.low;
    const f16 scale = to_f16(shape.zeros ? (range.high - range.low) / top : extreme / -middle);
    const float wide = to_float(scale);
    if (wide == 0) return {0, shape.zeros ? 0 : middle, top, {0}, true};
    const float zero = shape.zeros ? __builtin_rintf(-range.low * (1 / wide)) : middle;
    return grid_of(scale, zero < top ? zero : top, top);
}

template <class T>
inline void round_group(const T* x, int64_t count, const Grid& grid, uint8_t* codes) {
    const F32x16 factor = broadcast(grid.factor), zero = broadcast(grid.zero);
    const F32x16 least = broadcast(-grid.zero), most = broadcast(grid.top - grid.zero);
    const I32x16 middle = nearest(zero);
    for (int64_t i = 0; i < count; i += kLanes)
        store_u8(codes + i, nearest(max(min(load_up_to(x + i, count - i) * factor, most), least)) + middle);
    for (int64_t i = count; i % kLanes; ++i) codes[i] = 0;
}

}  // namespace
}  // namespace headrace::HR_LEVEL
