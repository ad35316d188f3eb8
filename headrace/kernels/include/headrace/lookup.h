// Tables of bytes, looked up sixty-four times at once, and what was found added up: tables of 64 bytes and
// sums of 32 bits where there are instructions for them, else of 16 bytes and 16 bits. Exact on every level,
// as long as nothing exceeds what its comment says.
#pragma once

#include "headrace/simd_int.h"

namespace headrace::HR_LEVEL {

#if defined(HR_LEVEL_AVX512)

// table[index] for each byte of `index`, all below 64.
inline Bytes look_up(Bytes table, Bytes index) {
    return {_mm512_permutexvar_epi8(index.v, table.v)};
}
// Four bits of each byte, from kShift on, and 16 times its place among four neighbours.
template <int kShift>
inline Bytes places(Bytes x) {
    const __m512i moved = kShift ? _mm512_srli_epi32(x.v, kShift) : x.v;
    constexpr int kAndThenOr = 0xea;
    return {
        _mm512_ternarylogic_epi32(moved, _mm512_set1_epi8(15), _mm512_set1_epi32(0x30201000), kAndThenOr)};
}
// Sums below 256.
inline Bytes operator+(Bytes a, Bytes b) {
    return {_mm512_add_epi8(a.v, b.v)};
}
// Lane kLane of each four lanes, four times.
template <int kLane>
inline F32x16 repeated(F32x16 x) {
    return {_mm512_shuffle_ps(x.v, x.v, kLane * 0x55)};
}
// Four lanes of a, of b, of c and of d, and then the next four of each: + kPlus as bytes, which must hold
// them.
template <int kPlus>
inline Bytes bytes_of(I32x16 a, I32x16 b, I32x16 c, I32x16 d) {
    const __m512i both = _mm512_packs_epi16(_mm512_packs_epi32(a.v, b.v), _mm512_packs_epi32(c.v, d.v));
    return {_mm512_add_epi8(both, _mm512_set1_epi8(kPlus))};
}

#elif defined(HR_LEVEL_AVX2)

// Thirty-two sums of sixteen bits.
struct I16x32 {
    __m256i lo, hi;
};

// A table of sixteen bytes, ready to be looked up.
inline Bytes load_table(const uint8_t* p) {
    const __m256i table = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    return {table, table};
}
// table[index] for each byte of `index`, all below 16.
inline Bytes look_up(Bytes table, Bytes index) {
    return {_mm256_shuffle_epi8(table.lo, index.lo), _mm256_shuffle_epi8(table.hi, index.hi)};
}
// Sums below 256.
inline Bytes operator+(Bytes a, Bytes b) {
    return {_mm256_add_epi8(a.lo, b.lo), _mm256_add_epi8(a.hi, b.hi)};
}
inline I16x32 no_words() {
    return {_mm256_setzero_si256(), _mm256_setzero_si256()};
}
// Pairs of neighbouring bytes, as they lie: first + 256 * second.
inline I16x32 words(Bytes x) {
    return {x.lo, x.hi};
}
// first * kFirst + second * kSecond of each pair of bytes, which are unsigned; below 2^15.
template <int kFirst, int kSecond>
inline I16x32 weighted(Bytes x) {
    const __m256i by = _mm256_set1_epi16(static_cast<int16_t>(kSecond << 8 | kFirst));
    return {_mm256_maddubs_epi16(x.lo, by), _mm256_maddubs_epi16(x.hi, by)};
}
// Wraps around.
inline I16x32 operator+(I16x32 a, I16x32 b) {
    return {_mm256_add_epi16(a.lo, b.lo), _mm256_add_epi16(a.hi, b.hi)};
}
// a - 256 * b, wrapping around.
inline I16x32 less_upper(I16x32 a, I16x32 b) {
    return {_mm256_sub_epi16(a.lo, _mm256_slli_epi16(b.lo, 8)),
            _mm256_sub_epi16(a.hi, _mm256_slli_epi16(b.hi, 8))};
}
// Words 16 * kHalf and the fifteen after it.
template <int kHalf>
inline I32x16 widened(I16x32 x) {
    const __m256i half = kHalf ? x.hi : x.lo;
    return {_mm256_cvtepi16_epi32(_mm256_castsi256_si128(half)),
            _mm256_cvtepi16_epi32(_mm256_extracti128_si256(half, 1))};
}
template <int kLane>
inline F32x16 repeated(F32x16 x) {
    return {_mm256_permute_ps(x.lo, kLane * 0x55), _mm256_permute_ps(x.hi, kLane * 0x55)};
}
template <int kPlus>
inline Bytes bytes_of(I32x16 a, I32x16 b, I32x16 c, I32x16 d) {
    const __m256i plus = _mm256_set1_epi8(kPlus);
    const __m256i lo = _mm256_packs_epi16(_mm256_packs_epi32(a.lo, b.lo), _mm256_packs_epi32(c.lo, d.lo));
    const __m256i hi = _mm256_packs_epi16(_mm256_packs_epi32(a.hi, b.hi), _mm256_packs_epi32(c.hi, d.hi));
    return {_mm256_add_epi8(lo, plus), _mm256_add_epi8(hi, plus)};
}

#else  // generic

struct I16x32 {
    uint16_t word[32];  // unsigned: sums wrap
};

inline Bytes load_table(const uint8_t* p) {
    Bytes x;
    for (int i = 0; i < 64; ++i) x.byte[i] = p[i % 16];
    return x;
}
inline Bytes look_up(Bytes table, Bytes index) {
    for (uint8_t& byte : index.byte) byte = table.byte[byte];
    return index;
}
inline Bytes operator+(Bytes a, Bytes b) {
    for (int i = 0; i < 64; ++i) a.byte[i] = static_cast<uint8_t>(a.byte[i] + b.byte[i]);
    return a;
}
inline I16x32 no_words() {
    return {};
}
template <int kFirst, int kSecond>
inline I16x32 weighted(Bytes x) {
    I16x32 out;
    for (int i = 0; i < 32; ++i)
        out.word[i] = static_cast<uint16_t>(x.byte[2 * i] * kFirst + x.byte[2 * i + 1] * kSecond);
    return out;
}
inline I16x32 words(Bytes x) {
    return weighted<1, 256>(x);
}
inline I16x32 operator+(I16x32 a, I16x32 b) {
    for (int i = 0; i < 32; ++i) a.word[i] = static_cast<uint16_t>(a.word[i] + b.word[i]);
    return a;
}
inline I16x32 less_upper(I16x32 a, I16x32 b) {
    for (int i = 0; i < 32; ++i) a.word[i] = static_cast<uint16_t>(a.word[i] - (b.word[i] << 8));
    return a;
}
template <int kHalf>
inline I32x16 widened(I16x32 x) {
    I32x16 out;
    for (int i = 0; i < 16; ++i) out.lane[i] = static_cast<int16_t>(x.word[16 * kHalf + i]);
    return out;
}
template <int kLane>
inline F32x16 repeated(F32x16 x) {
    F32x16 out;
    for (int64_t i = 0; i < kLanes; ++i) out.lane[i] = x.lane[i / 4 * 4 + kLane];
    return out;
}
template <int kPlus>
inline Bytes bytes_of(I32x16 a, I32x16 b, I32x16 c, I32x16 d) {
    const I32x16* all[] = {&a, &b, &c, &d};
    Bytes out;
    for (int i = 0; i < 64; ++i)
        out.byte[i] = static_cast<uint8_t>(all[i / 4 % 4]->lane[i / 16 * 4 + i % 4] + kPlus);
    return out;
}

#endif

}  // namespace headrace::HR_LEVEL
