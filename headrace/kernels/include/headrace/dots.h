// Sums of dot products of unsigned codes with signed bytes, sixteen side by side: exact, so the same on every
// level.
//
//   Dots<kBits> dots{start};
//   dots.add(k, factor<kBits>(codes), four);   // k = 0 to 7, all of them and in order, known to the compiler
//   dots.sum                                // start + sum of (code - kCentre<kBits>) * byte
#pragma once

#include "headrace/simd_int.h"

namespace headrace::HR_LEVEL {

#if defined(HR_LEVEL_AVX2)

// AVX2 adds pairs of products in sixteen bits. Those of narrow codes leave room for several, and widening
// them together saves two instructions of three. Codes of eight bits are centred first, and their signs moved
// to the other side: 128 * 127 twice just fits.
template <int kBits>
constexpr int kTogether = kBits <= 4   ? 8
                          : kBits == 5 ? 4
                          : kBits == 6 ? 2
                                       : 1;
template <int kBits>
constexpr int kCentre = kBits == 8 ? 128 : 0;

template <int kBits>
struct Factor {
    __m256i lo, hi;            // unsigned
    __m256i lo_sign, hi_sign;  // of eight bits only
};

template <int kBits>
inline Factor<kBits> factor(Bytes codes) {
    if constexpr (kBits < 8) {
        return {codes.lo, codes.hi, codes.lo, codes.hi};
    } else {
        const __m256i centre = _mm256_set1_epi8(-128);
        const __m256i lo = _mm256_xor_si256(codes.lo, centre), hi = _mm256_xor_si256(codes.hi, centre);
        return {_mm256_abs_epi8(lo), _mm256_abs_epi8(hi), lo, hi};
    }
}

template <int kBits>
struct Dots {
    static_assert(2 * kTogether<kBits> * (kBits == 8 ? 128 : (1 << kBits) - 1) * 127 <= INT16_MAX);
    I32x16 sum;
    __m256i lo, hi;  // sums of sixteen bits, of the last few quads

    void add(int k, const Factor<kBits>& x, int32_t four) {
        const __m256i all = _mm256_set1_epi32(four);
        const bool moved = kBits == 8;
        const __m256i first = _mm256_maddubs_epi16(x.lo, moved ? _mm256_sign_epi8(all, x.lo_sign) : all);
        const __m256i second = _mm256_maddubs_epi16(x.hi, moved ? _mm256_sign_epi8(all, x.hi_sign) : all);
        if (k % kTogether<kBits> == 0) {
            lo = first, hi = second;
        } else {
            lo = _mm256_add_epi16(lo, first), hi = _mm256_add_epi16(hi, second);
            asm("" : "+x"(lo), "+x"(hi));  // else GCC adds in pairs, for which there are not enough registers
        }
        if (k % kTogether<kBits> == kTogether<kBits> - 1) {
            const __m256i one = _mm256_set1_epi16(1);
            sum.lo = _mm256_add_epi32(sum.lo, _mm256_madd_epi16(lo, one));
            sum.hi = _mm256_add_epi32(sum.hi, _mm256_madd_epi16(hi, one));
        }
    }
};

#else

template <int kBits>
constexpr int kCentre = 0;
template <int kBits>
using Factor = Bytes;

template <int kBits>
inline Bytes factor(Bytes codes) {
    return codes;
}

template <int kBits>
struct Dots {
    I32x16 sum;

    void add(int, Bytes codes, int32_t four) { sum = dot<kBits>(sum, codes, four); }
};

#endif

}  // namespace headrace::HR_LEVEL
