// Sixty-four bytes as sixteen lanes of four, and sixteen 32-bit sums: what integer dot products are made of.
// Exact on every level, so that all give the same integers.
#pragma once

#include "headrace/f16.h"
#include "headrace/simd.h"

namespace headrace::HR_LEVEL {

#if defined(HR_LEVEL_AVX512)

struct Bytes {
    __m512i v;
};
struct I32x16 {
    __m512i v;
};

inline Bytes load_bytes(const uint8_t* p) {
    return {_mm512_loadu_si512(p)};
}
inline void store_bytes(uint8_t* p, Bytes x) {
    _mm512_storeu_si512(p, x.v);
}
// (x >> shift) & mask, byte by byte; the mask must clear what the shift brings over from the next byte.
inline Bytes field(Bytes x, int shift, int mask) {
    const __m512i moved = shift ? _mm512_srli_epi32(x.v, shift) : x.v;
    return {_mm512_and_si512(moved, _mm512_set1_epi8(static_cast<char>(mask)))};
}
// (x << shift) & mask, byte by byte.
inline Bytes raised(Bytes x, int shift, int mask) {
    const __m512i moved = shift ? _mm512_slli_epi32(x.v, shift) : x.v;
    return {_mm512_and_si512(moved, _mm512_set1_epi8(static_cast<char>(mask)))};
}
inline Bytes operator|(Bytes a, Bytes b) {
    return {_mm512_or_si512(a.v, b.v)};
}
inline Bytes operator-(Bytes a, Bytes b) {
    return {_mm512_sub_epi8(a.v, b.v)};
}
inline Bytes all_bytes(int x) {
    return {_mm512_set1_epi8(static_cast<char>(x))};
}
inline I32x16 all_lanes(int32_t x) {
    return {_mm512_set1_epi32(x)};
}
// Lanes below 256, each four times as a byte.
inline Bytes four_times(I32x16 x) {
    return {_mm512_mullo_epi32(x.v, _mm512_set1_epi32(0x01010101))};
}
inline I32x16 load_i32(const int32_t* p) {
    return {_mm512_loadu_si512(p)};
}
inline void store_i32(int32_t* p, I32x16 x) {
    _mm512_storeu_si512(p, x.v);
}
inline I32x16 load_u8(const uint8_t* p) {
    return {_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
}
inline I32x16 operator*(I32x16 a, I32x16 b) {
    return {_mm512_mullo_epi32(a.v, b.v)};
}
inline F32x16 to_float(I32x16 x) {
    return {_mm512_cvtepi32_ps(x.v)};
}
// sum + the dot product of each lane's four unsigned codes (below 2^kBits) with `four` signed bytes, the same
// for all lanes and none of them -128.
template <int kBits>
inline I32x16 dot(I32x16 sum, Bytes codes, int32_t four) {
    return {_mm512_dpbusd_epi32(sum.v, codes.v, _mm512_set1_epi32(four))};
}
inline F32x16 load_f16(const uint16_t* p) {
    return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}

#elif defined(HR_LEVEL_AVX2)

struct Bytes {
    __m256i lo, hi;
};
struct I32x16 {
    __m256i lo, hi;
};

inline Bytes load_bytes(const uint8_t* p) {
    const __m256i* q = reinterpret_cast<const __m256i*>(p);
    return {_mm256_loadu_si256(q), _mm256_loadu_si256(q + 1)};
}
inline void store_bytes(uint8_t* p, Bytes x) {
    __m256i* q = reinterpret_cast<__m256i*>(p);
    _mm256_storeu_si256(q, x.lo);
    _mm256_storeu_si256(q + 1, x.hi);
}
inline Bytes field(Bytes x, int shift, int mask) {
    const __m256i bits = _mm256_set1_epi8(static_cast<char>(mask));
    return {_mm256_and_si256(shift ? _mm256_srli_epi32(x.lo, shift) : x.lo, bits),
            _mm256_and_si256(shift ? _mm256_srli_epi32(x.hi, shift) : x.hi, bits)};
}
inline Bytes raised(Bytes x, int shift, int mask) {
    const __m256i bits = _mm256_set1_epi8(static_cast<char>(mask));
    return {_mm256_and_si256(shift ? _mm256_slli_epi32(x.lo, shift) : x.lo, bits),
            _mm256_and_si256(shift ? _mm256_slli_epi32(x.hi, shift) : x.hi, bits)};
}
inline Bytes operator|(Bytes a, Bytes b) {
    return {_mm256_or_si256(a.lo, b.lo), _mm256_or_si256(a.hi, b.hi)};
}
inline I32x16 all_lanes(int32_t x) {
    return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)};
}
inline I32x16 load_i32(const int32_t* p) {
    const __m256i* q = reinterpret_cast<const __m256i*>(p);
    return {_mm256_loadu_si256(q), _mm256_loadu_si256(q + 1)};
}
inline void store_i32(int32_t* p, I32x16 x) {
    __m256i* q = reinterpret_cast<__m256i*>(p);
    _mm256_storeu_si256(q, x.lo);
    _mm256_storeu_si256(q + 1, x.hi);
}
inline I32x16 load_u8(const uint8_t* p) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return {_mm256_cvtepu8_epi32(bytes), _mm256_cvtepu8_epi32(_mm_srli_si128(bytes, 8))};
}
inline I32x16 operator*(I32x16 a, I32x16 b) {
    return {_mm256_mullo_epi32(a.lo, b.lo), _mm256_mullo_epi32(a.hi, b.hi)};
}
inline F32x16 to_float(I32x16 x) {
    return {_mm256_cvtepi32_ps(x.lo), _mm256_cvtepi32_ps(x.hi)};
}
template <int kBits>
inline __m256i dot_half(__m256i sum, __m256i codes, __m256i four) {
    const __m256i one = _mm256_set1_epi16(1);
    if constexpr (kBits < 8) {  // two products of 127 * 127 fit in 16 bits
        return _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(codes, four), one));
    } else {  // two of 255 * 127 would not: the halves of each code apart
        const __m256i nibble = _mm256_set1_epi8(15);
        const __m256i low = _mm256_maddubs_epi16(_mm256_and_si256(codes, nibble), four);
        const __m256i high =
            _mm256_maddubs_epi16(_mm256_and_si256(_mm256_srli_epi32(codes, 4), nibble), four);
        sum = _mm256_add_epi32(sum, _mm256_madd_epi16(low, one));
        return _mm256_add_epi32(sum, _mm256_madd_epi16(high, _mm256_set1_epi16(16)));
    }
}
template <int kBits>
inline I32x16 dot(I32x16 sum, Bytes codes, int32_t four) {
    const __m256i all = _mm256_set1_epi32(four);
    return {dot_half<kBits>(sum.lo, codes.lo, all), dot_half<kBits>(sum.hi, codes.hi, all)};
}
inline F32x16 load_f16(const uint16_t* p) {
    const __m128i* q = reinterpret_cast<const __m128i*>(p);
    return {_mm256_cvtph_ps(_mm_loadu_si128(q)), _mm256_cvtph_ps(_mm_loadu_si128(q + 1))};
}

#else  // generic

struct Bytes {
    uint8_t byte[64];
};
struct I32x16 {
    int32_t lane[kLanes];
};

inline Bytes load_bytes(const uint8_t* p) {
    Bytes x;
    memcpy(x.byte, p, sizeof x.byte);
    return x;
}
inline void store_bytes(uint8_t* p, Bytes x) {
    memcpy(p, x.byte, sizeof x.byte);
}
inline Bytes field(Bytes x, int shift, int mask) {
    for (uint8_t& byte : x.byte) byte = static_cast<uint8_t>((byte >> shift) & mask);
    return x;
}
inline Bytes raised(Bytes x, int shift, int mask) {
    for (uint8_t& byte : x.byte) byte = static_cast<uint8_t>((byte << shift) & mask);
    return x;
}
inline Bytes operator|(Bytes a, Bytes b) {
    for (int i = 0; i < 64; ++i) a.byte[i] |= b.byte[i];
    return a;
}
inline I32x16 all_lanes(int32_t x) {
    I32x16 out;
    for (int32_t& lane : out.lane) lane = x;
    return out;
}
inline I32x16 load_i32(const int32_t* p) {
    I32x16 out;
    memcpy(out.lane, p, sizeof out.lane);
    return out;
}
inline void store_i32(int32_t* p, I32x16 x) {
    memcpy(p, x.lane, sizeof x.lane);
}
inline I32x16 load_u8(const uint8_t* p) {
    I32x16 out;
    for (int64_t i = 0; i < kLanes; ++i) out.lane[i] = p[i];
    return out;
}
// Wraps around, as that of vectors does.
inline I32x16 operator*(I32x16 a, I32x16 b) {
    for (int64_t i = 0; i < kLanes; ++i)
        a.lane[i] = static_cast<int32_t>(static_cast<uint32_t>(a.lane[i]) * static_cast<uint32_t>(b.lane[i]));
    return a;
}
inline F32x16 to_float(I32x16 x) {
    F32x16 out;
    for (int64_t i = 0; i < kLanes; ++i) out.lane[i] = static_cast<float>(x.lane[i]);
    return out;
}
template <int kBits>
inline I32x16 dot(I32x16 sum, Bytes codes, int32_t four) {
    int8_t a[4];
    memcpy(a, &four, sizeof a);
    for (int64_t i = 0; i < kLanes; ++i)
        for (int64_t k = 0; k < 4; ++k) sum.lane[i] += int32_t{codes.byte[4 * i + k]} * a[k];
    return sum;
}
inline F32x16 load_f16(const uint16_t* p) {
    F32x16 out;
    for (int64_t i = 0; i < kLanes; ++i) out.lane[i] = to_float(f16{p[i]});
    return out;
}

#endif

inline F32x16 load(const f16* p) {
    return load_f16(&p->bits);
}
inline F32x16 load_first(const f16* p, int64_t n) {
    f16 part[kLanes] = {};
    memcpy(part, p, static_cast<size_t>(n) * sizeof(f16));
    return load(part);
}

// Four signed bytes as one word.
inline int32_t load_four(const int8_t* p) {
    int32_t four;
    memcpy(&four, p, sizeof four);
    return four;
}

// GCC takes a function that does nothing but this for one without effects, and leaves its calls out unless
// they are inlined first: mark it always_inline, too.
[[gnu::always_inline]] inline void prefetch(const void* p) {
    __builtin_prefetch(p, 0, 3);
}
// No further than into the second-level cache.
[[gnu::always_inline]] inline void prefetch_second(const void* p) {
    __builtin_prefetch(p, 0, 2);
}

}  // namespace headrace::HR_LEVEL
