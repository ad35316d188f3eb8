// The functions of sixteen floats that kernels share. Every level takes the same steps, so all give the same
// bits.
#pragma once

#include "headrace/simd_int.h"

namespace headrace::HR_LEVEL {

#if defined(HR_LEVEL_AVX512)

inline F32x16 operator-(F32x16 a, F32x16 b) {
    return {_mm512_sub_ps(a.v, b.v)};
}
inline F32x16 operator/(F32x16 a, F32x16 b) {
    return {_mm512_div_ps(a.v, b.v)};
}
// a > b ? a : b, lane by lane: b where one of them is not a number.
inline F32x16 max(F32x16 a, F32x16 b) {
    return {_mm512_max_ps(a.v, b.v)};
}
inline F32x16 min(F32x16 a, F32x16 b) {
    return {_mm512_min_ps(a.v, b.v)};
}
inline F32x16 magnitude(F32x16 x) {
    return {_mm512_abs_ps(x.v)};
}
// To the nearest whole number, halves to the even one.
inline I32x16 nearest(F32x16 x) {
    return {_mm512_cvtps_epi32(x.v)};
}
// 2^n for n in [-126, 127].
inline F32x16 two_to(I32x16 n) {
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(n.v, _mm512_set1_epi32(127)), 23))};
}
// x where a < b, else y.
inline F32x16 where_less(F32x16 a, F32x16 b, F32x16 x, F32x16 y) {
    return {_mm512_mask_mov_ps(y.v, _mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ), x.v)};
}
// Bit i: whether lane i of a is at least that of b.
inline uint32_t bits_at_least(F32x16 a, F32x16 b) {
    return _mm512_cmp_ps_mask(a.v, b.v, _CMP_GE_OQ);
}
// x where a >= b, else 0.
inline F32x16 where_at_least(F32x16 a, F32x16 b, F32x16 x) {
    return {_mm512_maskz_mov_ps(_mm512_cmp_ps_mask(a.v, b.v, _CMP_GE_OQ), x.v)};
}
// x in the lanes whose bit is set, else y.
inline F32x16 where_set(uint32_t bits, F32x16 x, F32x16 y) {
    return {_mm512_mask_mov_ps(y.v, static_cast<__mmask16>(bits), x.v)};
}
// Lanes in [-128, 127] as bytes; others saturate.
inline void store_i8(int8_t* p, I32x16 x) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtsepi32_epi8(x.v));
}
// Lanes in [0, 255] as bytes.
inline void store_u8(uint8_t* p, I32x16 x) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtusepi32_epi8(x.v));
}
inline I32x16 operator+(I32x16 a, I32x16 b) {
    return {_mm512_add_epi32(a.v, b.v)};
}
inline int32_t sum(I32x16 x) {
    return _mm512_reduce_add_epi32(x.v);
}

#elif defined(HR_LEVEL_AVX2)

inline F32x16 operator-(F32x16 a, F32x16 b) {
    return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)};
}
inline F32x16 operator/(F32x16 a, F32x16 b) {
    return {_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)};
}
inline F32x16 max(F32x16 a, F32x16 b) {
    return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)};
}
inline F32x16 min(F32x16 a, F32x16 b) {
    return {_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)};
}
inline F32x16 magnitude(F32x16 x) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    return {_mm256_andnot_ps(sign, x.lo), _mm256_andnot_ps(sign, x.hi)};
}
inline I32x16 nearest(F32x16 x) {
    return {_mm256_cvtps_epi32(x.lo), _mm256_cvtps_epi32(x.hi)};
}
inline F32x16 two_to(I32x16 n) {
    const __m256i bias = _mm256_set1_epi32(127);
    return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n.lo, bias), 23)),
            _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n.hi, bias), 23))};
}
inline F32x16 where_less(F32x16 a, F32x16 b, F32x16 x, F32x16 y) {
    return {_mm256_blendv_ps(y.lo, x.lo, _mm256_cmp_ps(a.lo, b.lo, _CMP_LT_OQ)),
            _mm256_blendv_ps(y.hi, x.hi, _mm256_cmp_ps(a.hi, b.hi, _CMP_LT_OQ))};
}
inline uint32_t bits_at_least(F32x16 a, F32x16 b) {
    return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(a.lo, b.lo, _CMP_GE_OQ))) |
           static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(a.hi, b.hi, _CMP_GE_OQ))) << 8;
}
inline F32x16 where_at_least(F32x16 a, F32x16 b, F32x16 x) {
    return {_mm256_and_ps(_mm256_cmp_ps(a.lo, b.lo, _CMP_GE_OQ), x.lo),
            _mm256_and_ps(_mm256_cmp_ps(a.hi, b.hi, _CMP_GE_OQ), x.hi)};
}
inline F32x16 where_set(uint32_t bits, F32x16 x, F32x16 y) {
    const __m256i all = _mm256_set1_epi32(static_cast<int32_t>(bits));
    const auto pick = [&](__m256i lanes, __m256 a, __m256 b) {
        return _mm256_blendv_ps(b, a, _mm256_castsi256_ps(_mm256_sllv_epi32(all, lanes)));  // by the sign
    };
    return {pick(_mm256_setr_epi32(31, 30, 29, 28, 27, 26, 25, 24), x.lo, y.lo),
            pick(_mm256_setr_epi32(23, 22, 21, 20, 19, 18, 17, 16), x.hi, y.hi)};
}
inline void store_i8(int8_t* p, I32x16 x) {
    const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(x.lo, x.hi), 0b11011000);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                     _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)));
}
inline void store_u8(uint8_t* p, I32x16 x) {
    const __m256i words = _mm256_permute4x64_epi64(_mm256_packus_epi32(x.lo, x.hi), 0b11011000);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                     _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)));
}
inline I32x16 operator+(I32x16 a, I32x16 b) {
    return {_mm256_add_epi32(a.lo, b.lo), _mm256_add_epi32(a.hi, b.hi)};
}
inline int32_t sum(I32x16 x) {
    alignas(32) int32_t lane[8];
    _mm256_store_si256(reinterpret_cast<__m256i*>(lane), _mm256_add_epi32(x.lo, x.hi));
    int32_t total = 0;
    for (int32_t value : lane) total += value;
    return total;
}

#else  // generic

#define HR_LANES(expression)                                             \
    do {                                                                 \
        for (int64_t i = 0; i < kLanes; ++i) out.lane[i] = (expression); \
        return out;                                                      \
    } while (0)

inline F32x16 operator-(F32x16 a, F32x16 b) {
    F32x16 out;
    HR_LANES(a.lane[i] - b.lane[i]);
}
inline F32x16 operator/(F32x16 a, F32x16 b) {
    F32x16 out;
    HR_LANES(a.lane[i] / b.lane[i]);
}
inline F32x16 max(F32x16 a, F32x16 b) {
    F32x16 out;
    HR_LANES(a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i]);
}
inline F32x16 min(F32x16 a, F32x16 b) {
    F32x16 out;
    HR_LANES(a.lane[i] < b.lane[i] ? a.lane[i] : b.lane[i]);
}
inline F32x16 magnitude(F32x16 x) {
    F32x16 out;
    HR_LANES(__builtin_fabsf(x.lane[i]));
}
inline I32x16 nearest(F32x16 x) {
    I32x16 out;
    // What does not fit gives INT_MIN, as the instruction of the other levels does.
    HR_LANES(x.lane[i] >= -0x1p31f && x.lane[i] < 0x1p31f ? static_cast<int32_t>(__builtin_rintf(x.lane[i]))
                                                          : INT32_MIN);
}
inline F32x16 two_to(I32x16 n) {
    F32x16 out;
    HR_LANES(__builtin_ldexpf(1.0f, n.lane[i]));
}
inline F32x16 where_less(F32x16 a, F32x16 b, F32x16 x, F32x16 y) {
    F32x16 out;
    HR_LANES(a.lane[i] < b.lane[i] ? x.lane[i] : y.lane[i]);
}
inline uint32_t bits_at_least(F32x16 a, F32x16 b) {
    uint32_t bits = 0;
    for (int64_t i = 0; i < kLanes; ++i) bits |= static_cast<uint32_t>(a.lane[i] >= b.lane[i]) << i;
    return bits;
}
inline F32x16 where_at_least(F32x16 a, F32x16 b, F32x16 x) {
    F32x16 out;
    HR_LANES(a.lane[i] >= b.lane[i] ? x.lane[i] : 0.0f);
}
inline F32x16 where_set(uint32_t bits, F32x16 x, F32x16 y) {
    F32x16 out;
    HR_LANES(bits >> i & 1 ? x.lane[i] : y.lane[i]);
}
inline void store_i8(int8_t* p, I32x16 x) {
    for (int64_t i = 0; i < kLanes; ++i) {
        const int32_t value = x.lane[i];
        p[i] = static_cast<int8_t>(value < -128 ? -128 : value > 127 ? 127 : value);
    }
}
inline void store_u8(uint8_t* p, I32x16 x) {
    for (int64_t i = 0; i < kLanes; ++i) {
        const int32_t value = x.lane[i];
        p[i] = static_cast<uint8_t>(value < 0 ? 0 : value > 255 ? 255 : value);
    }
}
// Wraps around, as that of vectors does.
inline I32x16 operator+(I32x16 a, I32x16 b) {
    I32x16 out;
    HR_LANES(static_cast<int32_t>(static_cast<uint32_t>(a.lane[i]) + static_cast<uint32_t>(b.lane[i])));
}
inline int32_t sum(I32x16 x) {
    int32_t total = 0;
    for (int32_t value : x.lane) total += value;
    return total;
}
#undef HR_LANES

#endif

// The largest lane; none is a NaN.
inline float largest(F32x16 x) {
#if defined(HR_LEVEL_AVX512)
    return _mm512_reduce_max_ps(x.v);
#elif defined(HR_LEVEL_AVX2)
    const __m256 eight = _mm256_max_ps(x.lo, x.hi);
    const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
#else
    float most = x.lane[0];
    for (float value : x.lane) most = value > most ? value : most;
    return most;
#endif
}

// e^x, within 2 units in the last place; 0 below -87.3, where the result would be subnormal.
inline F32x16 exp(F32x16 x) {
    const F32x16 low = broadcast(-87.3f);
    const F32x16 bounded = max(min(x, broadcast(88.3f)), low);
    const I32x16 n = nearest(bounded * broadcast(1.44269504f));
    const F32x16 whole = to_float(n);
    F32x16 r = fma(whole, broadcast(-0.693145752f), bounded);  // ln 2 in two parts
    r = fma(whole, broadcast(-1.42860677e-6f), r);
    F32x16 p = broadcast(1.0f / 720);
    p = fma(p, r, broadcast(1.0f / 120));
    p = fma(p, r, broadcast(1.0f / 24));
    p = fma(p, r, broadcast(1.0f / 6));
    p = fma(p, r, broadcast(0.5f));
    p = fma(p, r, broadcast(1.0f));
    p = fma(p, r, broadcast(1.0f));
    return where_at_least(x, low, p * two_to(n));
}

// x / (1 + e^-x)
inline F32x16 silu(F32x16 x) {
    return x / (broadcast(1.0f) + exp(broadcast(0.0f) - x));
}

// x / 2 * (1 + tanh(u)), u = sqrt(2 / pi) * (x + 0.044715 x^3); (1 + tanh u) / 2 = 1 / (1 + e^-2u)
inline F32x16 gelu_tanh(F32x16 x) {
    const F32x16 cubic = fma(x * x * x, broadcast(0.044715f), x);
    return x / (broadcast(1.0f) + exp(cubic * broadcast(-2 * 0.7978845608f)));
}

}  // namespace headrace::HR_LEVEL
