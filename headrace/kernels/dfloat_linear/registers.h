// Sixty-four weights at a time: high bytes looked up, and joined with low ones.
#pragma once

#include "headrace/simd_int.h"

namespace headrace::HR_LEVEL {
namespace {

// The byte of a register where a weight is kept: eights in the order 0 2 1 3 4 6 5 7.
inline int64_t kept_at(int64_t weight) {
    const int64_t eight = weight / 8;
    return ((eight & 4) | (eight & 1) << 1 | (eight >> 1 & 1)) * 8 + weight % 8;
}

#if defined(HR_LEVEL_AVX512)

// The same sixteen bytes four times: a table.
inline Bytes load_table(const uint8_t* p) {
    return {_mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
}
// Each byte's entry; bytes are below sixteen.
inline Bytes look_up(Bytes table, Bytes x) {
    return {_mm512_shuffle_epi8(table.v, x.v)};
}
// Sixty-four words of low and high bytes, in the order of weights.
inline void store_words(bf16* p, Bytes low, Bytes high) {
    const __m512i even = _mm512_unpacklo_epi8(low.v, high.v);  // eights 0 1 4 5
    const __m512i odd = _mm512_unpackhi_epi8(low.v, high.v);   // 2 3 6 7
    _mm512_storeu_si512(p, _mm512_shuffle_i64x2(even, odd, 0x44));
    _mm512_storeu_si512(p + 32, _mm512_shuffle_i64x2(even, odd, 0xee));
}

#elif defined(HR_LEVEL_AVX2)

inline Bytes load_table(const uint8_t* p) {
    const __m256i both = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    return {both, both};
}
inline Bytes look_up(Bytes table, Bytes x) {
    return {_mm256_shuffle_epi8(table.lo, x.lo), _mm256_shuffle_epi8(table.hi, x.hi)};
}
inline void store_words(bf16* p, Bytes low, Bytes high) {
    __m256i* q = reinterpret_cast<__m256i*>(p);
    _mm256_storeu_si256(q, _mm256_unpacklo_epi8(low.lo, high.lo));
    _mm256_storeu_si256(q + 1, _mm256_unpackhi_epi8(low.lo, high.lo));
    _mm256_storeu_si256(q + 2, _mm256_unpacklo_epi8(low.hi, high.hi));
    _mm256_storeu_si256(q + 3, _mm256_unpackhi_epi8(low.hi, high.hi));
}

#else

inline Bytes load_table(const uint8_t* p) {
    Bytes out;
    for (int64_t i = 0; i < 64; ++i) out.byte[i] = p[i % 16];
    return out;
}
inline Bytes look_up(Bytes table, Bytes x) {
    for (uint8_t& byte : x.byte) byte = table.byte[byte & 15];
    return x;
}
inline void store_words(bf16* p, Bytes low, Bytes high) {
    for (int64_t i = 0; i < 64; ++i) {
        const int64_t at = kept_at(i);
        p[i].bits = static_cast<uint16_t>(high.byte[at] << 8 | low.byte[at]);
    }
}

#endif

}  // namespace
}  // namespace headrace::HR_LEVEL
