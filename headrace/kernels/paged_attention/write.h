// Keys and values into their pages. Compiled once per level. __init__.py states the arithmetic of int8.
#pragma once

#include "headrace/parallel.h"
#include "headrace/simd_math.h"
#include "paged_attention/kernel.h"

namespace headrace::HR_LEVEL {
namespace {

inline void put(float* to, float value) {
    *to = value;
}
inline void put(bf16* to, float value) {
    *to = to_bf16(value);
}
inline void put(int8_t* to, float code) {
    *to = static_cast<int8_t>(code);
}
inline void store(int8_t* to, F32x16 codes) {
    store_i8(to, nearest(codes));
}

// One head of one token, [H], to 8-bit codes, as floats; returns the scale. Where a number is not finite,
// codes are zeros and the scale is NaN.
inline float quantise(const float* x, int64_t head_size, float* codes) {
    const F32x16 nothing = broadcast(0);
    F32x16 top = nothing, bad = nothing;
    for (int64_t h = 0; h < head_size; h += kLanes) {
        top = max(magnitude(load(x + h)), top);
        bad = fma(load(x + h), nothing, bad);
    }
    if (!(sum(bad) == 0)) {
        memset(codes, 0, static_cast<size_t>(head_size) * sizeof *codes);
        return __builtin_nanf("");
    }
    const float most = largest(top);
    const F32x16 factor = broadcast(most >= 0x1p-100f ? 127.0f / most : 0.0f);
    for (int64_t h = 0; h < head_size; h += kLanes) store(codes + h, to_float(nearest(load(x + h) * factor)));
    return most / 127.0f;
}

// One head of one token: keys `stride` apart, values side by side.
template <class T>
inline void write_head(const float* k, const float* v, int64_t head_size, T* keys, int64_t stride,
                       T* values) {
    for (int64_t h = 0; h < head_size; ++h) put(keys + h * stride, k[h]);
    for (int64_t h = 0; h < head_size; h += kLanes) store(values + h, load(v + h));
}

template <class T>
void write_row(const PagedWrite& a, int64_t row) {
    const PageStore& s = a.store;
    const int64_t H = s.head_size, inside = a.slots[row] % s.page_tokens;
    uint8_t* page = s.arena + a.slots[row] / s.page_tokens * s.page_bytes;
    float* codes = static_cast<float*>(scratch(Scratch::piece, 2 * H * 4));
    for (int64_t g = 0; g < s.kv_heads; ++g) {
        uint8_t *keys = page + s.k_at + s.head_at(g), *values = page + s.v_at + s.head_at(g);
        const float *k = a.k + row * a.k_stride + g * H, *v = a.v + row * a.v_stride + g * H;
        if (s.scale_bytes()) {
            reinterpret_cast<float*>(keys)[inside] = quantise(k, H, codes);
            reinterpret_cast<float*>(values)[inside] = quantise(v, H, codes + H);
            k = codes, v = codes + H;
        }
        write_head(k, v, H, reinterpret_cast<T*>(keys + s.scale_bytes()) + inside, s.page_tokens,
                   reinterpret_cast<T*>(values + s.scale_bytes()) + inside * H);
    }
}

template <class T>
void write(const PagedWrite& a) {
    for_each_row(a.rows, 8 * a.store.kv_heads * a.store.head_size,
                 [&](int64_t row) { write_row<T>(a, row); });
}

}  // namespace
}  // namespace headrace::HR_LEVEL
