// What surrounds a product of rows with a weight matrix: what its rows go through first, and where its sums
// go.
#pragma once

#include <stdint.h>

namespace headrace {

enum class Before : int { nothing, rms_norm, silu_gate, gelu_gate };

struct RowSource {
    const float* x;  // [rows, width], or [rows, 2 * width] for a gate: act(first half) * second half
    int64_t stride;  // between rows
    Before before;
    const float* weight;  // [width], of the norm
    float eps, weight_offset;
};

struct ProductEnd {
    int64_t outputs;
    const float* bias;  // [outputs] or null
    const float* add;   // [rows, outputs] or null; may be `out` itself
    float* out;         // [rows, outputs]
};

}  // namespace headrace

#ifdef HR_LEVEL

#include "headrace/norm.h"
#include "headrace/simd_math.h"

namespace headrace::HR_LEVEL {

// One row of what is multiplied, in float32. `out` has room for whole vectors.
inline void read_row(const RowSource& source, int64_t row, int64_t width, float* out) {
    const float* x = source.x + row * source.stride;
    const float scale = source.before == Before::rms_norm ? norm_scale(x, width, source.eps) : 1.0f;
    for (int64_t i = 0; i < width; i += kLanes) {
        const int64_t n = width - i < kLanes ? width - i : kLanes;
        F32x16 v = n == kLanes ? load(x + i) : load_first(x + i, n);
        if (source.before == Before::rms_norm) {
            const float* w = source.weight + i;
            const F32x16 weight = n == kLanes ? load(w) : load_first(w, n);
            v = v * broadcast(scale) * (weight + broadcast(source.weight_offset));
        } else if (source.before != Before::nothing) {
            const F32x16 up = n == kLanes ? load(x + width + i) : load_first(x + width + i, n);
            v = (source.before == Before::silu_gate ? silu(v) : gelu_tanh(v)) * up;
        }
        store(out + i, v);
    }
}

// Sixteen outputs of a row, of which those beyond the last one do not exist.
inline void write_outputs(const ProductEnd& end, int64_t row, int64_t first, F32x16 y) {
    const int64_t at = row * end.outputs + first;
    const int64_t n = end.outputs - first < kLanes ? end.outputs - first : kLanes;
    if (n <= 0) return;
    const bool whole = n == kLanes;
    if (end.bias) y = y + (whole ? load(end.bias + first) : load_first(end.bias + first, n));
    if (end.add) y = y + (whole ? load(end.add + at) : load_first(end.add + at, n));
    whole ? store(end.out + at, y) : store_first(end.out + at, y, n);
}

}  // namespace headrace::HR_LEVEL

#endif
