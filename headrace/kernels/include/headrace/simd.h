// One vector of sixteen float lanes, written once per instruction set.
//
// Every level has the same sixteen lanes (one register, two, or a plain array) and adds them up in the same
// tree, so a kernel written with F32x16 gives the same bits on every level.
//
// A cpu.cpp is compiled once per level, with that level's flags and HR_LEVEL set to its name, and puts
// everything into namespace headrace::HR_LEVEL. It may include only headrace/*.h, its own kernel.h,
// intrinsics and C headers. The reason: an inline function of the standard library, compiled with AVX-512
// flags, is one symbol program-wide; the linker may keep that copy for everyone, and an older processor would
// meet it.
#pragma once

#ifndef HR_LEVEL
#error "simd.h is for sources that are compiled per level"
#endif

#include <stdint.h>

#include "headrace/bf16.h"

#if defined(HR_LEVEL_AVX2) || defined(HR_LEVEL_AVX512)
#include <immintrin.h>
#endif

namespace headrace::HR_LEVEL {

constexpr int64_t kLanes = 16;

// Before a loop over registers: an array of them stays in registers only if the compiler sees every index as
// a constant, early. Where a vector is itself an array, there is nothing to gain, and emulated instructions
// unrolled by the hundred take minutes to compile.
#if defined(HR_LEVEL_GENERIC) || (defined(HR_LEVEL_AVX512) && defined(HR_EMULATED))
#define HR_UNROLL
#else
#define HR_UNROLL _Pragma("GCC unroll 32")
#endif

#if defined(HR_LEVEL_AVX512)

struct F32x16 {
    __m512 v;
};

inline __mmask16 first_lanes(int64_t n) {
    return static_cast<__mmask16>((1u << n) - 1);
}

// Each word into the upper half of a number: one shuffle, where widening and shifting are two.
inline __m512 widen(__m256i x) {
    const __m512i places = _mm512_set_epi32(
        0x1f1e0000, 0x1d1c0000, 0x1b1a0000, 0x19180000, 0x17160000, 0x15140000, 0x13120000, 0x11100000,
        0x0f0e0000, 0x0d0c0000, 0x0b0a0000, 0x09080000, 0x07060000, 0x05040000, 0x03020000, 0x01000000);
    return _mm512_castsi512_ps(
        _mm512_maskz_permutexvar_epi8(0xCCCCCCCCCCCCCCCC, places, _mm512_castsi256_si512(x)));
}

// In integers, not vcvtneps2bf16: that instruction flushes subnormals to zero, and the other levels do not.
inline __m256i narrow(__m512 x) {
    const __m512i bits = _mm512_castps_si512(x);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    const __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    const __m512i quiet = _mm512_mask_or_epi32(rounded, nan, bits, _mm512_set1_epi32(0x400000));
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(quiet, 16));
}

inline F32x16 broadcast(float x) {
    return {_mm512_set1_ps(x)};
}
inline F32x16 load(const float* p) {
    return {_mm512_loadu_ps(p)};
}
inline F32x16 load(const bf16* p) {
    return {widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
inline F32x16 load(const int8_t* p) {
    return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))))};
}
inline F32x16 load_first(const float* p, int64_t n) {
    return {_mm512_maskz_loadu_ps(first_lanes(n), p)};
}
inline F32x16 load_first(const bf16* p, int64_t n) {
    return {widen(_mm256_maskz_loadu_epi16(first_lanes(n), p))};
}
inline void store(float* p, F32x16 x) {
    _mm512_storeu_ps(p, x.v);
}
inline void store(bf16* p, F32x16 x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow(x.v));
}
inline void store_first(float* p, F32x16 x, int64_t n) {
    _mm512_mask_storeu_ps(p, first_lanes(n), x.v);
}
inline void store_first(bf16* p, F32x16 x, int64_t n) {
    _mm256_mask_storeu_epi16(p, first_lanes(n), narrow(x.v));
}
inline F32x16 operator+(F32x16 a, F32x16 b) {
    return {_mm512_add_ps(a.v, b.v)};
}
inline F32x16 operator*(F32x16 a, F32x16 b) {
    return {_mm512_mul_ps(a.v, b.v)};
}
inline F32x16 fma(F32x16 a, F32x16 b, F32x16 c) {
    return {_mm512_fmadd_ps(a.v, b.v, c.v)};
}
inline __m256 fold(F32x16 x) {
    return _mm256_add_ps(_mm512_castps512_ps256(x.v), _mm512_extractf32x8_ps(x.v, 1));
}

#elif defined(HR_LEVEL_AVX2)

struct F32x16 {
    __m256 lo, hi;
};

inline __m256 widen(__m128i x) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(x), 16));
}

inline __m256i narrow(__m256 x) {
    const __m256i bits = _mm256_castps_si256(x);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    return _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, nan), 16);
}

inline F32x16 broadcast(float x) {
    return {_mm256_set1_ps(x), _mm256_set1_ps(x)};
}
inline F32x16 load(const float* p) {
    return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)};
}
inline F32x16 load(const bf16* p) {
    const __m128i* q = reinterpret_cast<const __m128i*>(p);
    return {widen(_mm_loadu_si128(q)), widen(_mm_loadu_si128(q + 1))};
}
inline F32x16 load(const int8_t* p) {
    return {
        _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)))),
        _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p + 8))))};
}
inline void store(float* p, F32x16 x) {
    _mm256_storeu_ps(p, x.lo);
    _mm256_storeu_ps(p + 8, x.hi);
}
inline void store(bf16* p, F32x16 x) {
    const __m256i pairs = _mm256_packus_epi32(narrow(x.lo), narrow(x.hi));  // lo[0:4] hi[0:4] lo[4:8] hi[4:8]
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_permute4x64_epi64(pairs, 0b11011000));
}
inline F32x16 operator+(F32x16 a, F32x16 b) {
    return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)};
}
inline F32x16 operator*(F32x16 a, F32x16 b) {
    return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)};
}
inline F32x16 fma(F32x16 a, F32x16 b, F32x16 c) {
    return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
}
inline __m256 fold(F32x16 x) {
    return _mm256_add_ps(x.lo, x.hi);
}

#else  // generic: plain loops, for the compiler to vectorise

struct F32x16 {
    float lane[kLanes];
};

inline F32x16 broadcast(float x) {
    F32x16 out;
    for (float& lane : out.lane) lane = x;
    return out;
}
template <class T>
inline F32x16 load(const T* p) {
    F32x16 out;
    for (int64_t i = 0; i < kLanes; ++i) out.lane[i] = to_float(p[i]);
    return out;
}
inline void store(float* p, F32x16 x) {
    for (int64_t i = 0; i < kLanes; ++i) p[i] = x.lane[i];
}
inline void store(bf16* p, F32x16 x) {
    for (int64_t i = 0; i < kLanes; ++i) p[i] = to_bf16(x.lane[i]);
}
inline F32x16 operator+(F32x16 a, F32x16 b) {
    for (int64_t i = 0; i < kLanes; ++i) a.lane[i] += b.lane[i];
    return a;
}
inline F32x16 operator*(F32x16 a, F32x16 b) {
    for (int64_t i = 0; i < kLanes; ++i) a.lane[i] *= b.lane[i];
    return a;
}
inline F32x16 fma(F32x16 a, F32x16 b, F32x16 c) {
    for (int64_t i = 0; i < kLanes; ++i) c.lane[i] = __builtin_fmaf(a.lane[i], b.lane[i], c.lane[i]);
    return c;
}

#endif

#if !defined(HR_LEVEL_AVX512)
// The first n < 16 values, then zeros. Reads and writes nothing beyond them.
template <class T>
inline F32x16 load_first(const T* p, int64_t n) {
    T part[kLanes] = {};
    memcpy(part, p, static_cast<size_t>(n) * sizeof(T));
    return load(part);
}
template <class T>
inline void store_first(T* p, F32x16 x, int64_t n) {
    T part[kLanes];
    store(part, x);
    memcpy(p, part, static_cast<size_t>(n) * sizeof(T));
}
#endif

// Sum of the sixteen lanes: halves onto each other, 8, 4, 2, 1, on every level.
inline float sum(F32x16 x) {
#if defined(HR_LEVEL_AVX2) || defined(HR_LEVEL_AVX512)
    const __m256 eight = fold(x);
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
#else
    for (int64_t half = kLanes / 2; half > 0; half /= 2)
        for (int64_t i = 0; i < half; ++i) x.lane[i] += x.lane[i + half];
    return x.lane[0];
#endif
}

}  // namespace headrace::HR_LEVEL
