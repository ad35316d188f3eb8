// AVX-512 without a processor that has it: what our sources use of it, each instruction as a few plain lines.
//
// `make emulate` puts this folder before the compiler's own headers for the levels avx512 and amx, compiles
// them with the flags of avx2, and runs the kernel tests: slowly, and on any machine with AVX2. Names are
// declared in the level's own namespace, which is looked through before the global one, so they hide those of
// the compiler. An instruction that is missing here does not compile: add it, as its manual has it.
//
// How it is known that these lines do what the instructions do: kernels must give the same bits on every
// level, and generic and avx2 share none of this. Two are left out by that, because bf16_linear may differ
// between levels: _mm512_dpbf16_ps and _tile_dpbf16ps (tiles.h). tests/kernels/test_bf16_linear.py states
// their arithmetic once more, in Python, for emulated and real ones alike.
#pragma once

#include_next <immintrin.h>
#include <stdint.h>
#include <string.h>

#include "headrace/check.h"

namespace headrace::HR_LEVEL {

struct __m512 {
    float lane[16];
};
struct __m512i {
    uint32_t lane[16];  // unsigned: sums and products wrap
};
struct __m512bh {
    uint16_t lane[32];
    explicit __m512bh(const __m512i& x) { memcpy(lane, x.lane, sizeof lane); }
    explicit __m512bh(const __m512& x) { memcpy(lane, x.lane, sizeof lane); }
};

// lane(i) for every lane of the result.
template <class Vector, class Lane>
inline Vector emulate(const Lane& lane) {
    Vector out;
    for (int i = 0; i < 16; ++i) out.lane[i] = lane(i);
    return out;
}

inline bool emulated_bit(__mmask16 mask, int i) {
    return mask >> i & 1;
}

// The same bytes as another type.
template <class To, class From>
inline To emulated_cast(const From& from) {
    static_assert(sizeof(To) <= sizeof(From));
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
}

// --- memory: only the lanes of a mask are touched
// -----------------------------------------------------------

inline __m512 _mm512_loadu_ps(const void* p) {
    __m512 out;
    memcpy(&out, p, sizeof out);
    return out;
}
inline __m512i _mm512_loadu_si512(const void* p) {
    __m512i out;
    memcpy(&out, p, sizeof out);
    return out;
}
inline void _mm512_storeu_ps(void* p, __m512 x) {
    memcpy(p, &x, sizeof x);
}
inline void _mm512_storeu_si512(void* p, __m512i x) {
    memcpy(p, &x, sizeof x);
}
inline __m512 _mm512_maskz_loadu_ps(__mmask16 mask, const void* p) {
    __m512 out = {};
    for (int i = 0; i < 16; ++i)
        if (emulated_bit(mask, i)) memcpy(&out.lane[i], static_cast<const char*>(p) + 4 * i, 4);
    return out;
}
inline void _mm512_mask_storeu_ps(void* p, __mmask16 mask, __m512 x) {
    for (int i = 0; i < 16; ++i)
        if (emulated_bit(mask, i)) memcpy(static_cast<char*>(p) + 4 * i, &x.lane[i], 4);
}
inline __m256i _mm256_maskz_loadu_epi16(__mmask16 mask, const void* p) {
    uint16_t lane[16] = {};
    for (int i = 0; i < 16; ++i)
        if (emulated_bit(mask, i)) memcpy(&lane[i], static_cast<const char*>(p) + 2 * i, 2);
    return emulated_cast<__m256i>(lane);
}
inline void _mm256_mask_storeu_epi16(void* p, __mmask16 mask, __m256i x) {
    uint16_t lane[16];
    memcpy(lane, &x, sizeof lane);
    for (int i = 0; i < 16; ++i)
        if (emulated_bit(mask, i)) memcpy(static_cast<char*>(p) + 2 * i, &lane[i], 2);
}

// --- the same in every lane, and other names for the same bits
// ----------------------------------------------

inline __m512 _mm512_set1_ps(float x) {
    return emulate<__m512>([&](int) { return x; });
}
inline __m512i _mm512_set1_epi32(int x) {
    return emulate<__m512i>([&](int) { return static_cast<uint32_t>(x); });
}
// The last lane first.
template <class... Lanes>
inline __m512i _mm512_set_epi32(Lanes... lanes) {
    const uint32_t last_first[16] = {static_cast<uint32_t>(lanes)...};
    return emulate<__m512i>([&](int i) { return last_first[15 - i]; });
}
// The upper half is undefined.
inline __m512i _mm512_castsi256_si512(__m256i x) {
    __m512i out;
    memset(&out, 0x5a, sizeof out);
    memcpy(&out, &x, sizeof x);
    return out;
}
inline __m512i _mm512_set1_epi8(char x) {
    return emulate<__m512i>([&](int) { return static_cast<uint8_t>(x) * 0x01010101u; });
}
inline __m512i _mm512_castps_si512(__m512 x) {
    return emulated_cast<__m512i>(x);
}
inline __m512 _mm512_castsi512_ps(__m512i x) {
    return emulated_cast<__m512>(x);
}
inline __m256 _mm512_castps512_ps256(__m512 x) {
    return emulated_cast<__m256>(x);
}
inline __m256 _mm512_extractf32x8_ps(__m512 x, int half) {
    return _mm256_loadu_ps(x.lane + half % 2 * 8);
}

// --- floats
// -------------------------------------------------------------------------------------------------

inline __m512 _mm512_add_ps(__m512 a, __m512 b) {
    return emulate<__m512>([&](int i) { return a.lane[i] + b.lane[i]; });
}
inline __m512 _mm512_sub_ps(__m512 a, __m512 b) {
    return emulate<__m512>([&](int i) { return a.lane[i] - b.lane[i]; });
}
inline __m512 _mm512_mul_ps(__m512 a, __m512 b) {
    return emulate<__m512>([&](int i) { return a.lane[i] * b.lane[i]; });
}
inline __m512 _mm512_div_ps(__m512 a, __m512 b) {
    return emulate<__m512>([&](int i) { return a.lane[i] / b.lane[i]; });
}
inline __m512 _mm512_fmadd_ps(__m512 a, __m512 b, __m512 c) {
    return emulate<__m512>([&](int i) { return __builtin_fmaf(a.lane[i], b.lane[i], c.lane[i]); });
}
// The second one where they are equal (zeros of both signs), or one is not a number.
inline __m512 _mm512_max_ps(__m512 a, __m512 b) {
    return emulate<__m512>([&](int i) { return a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i]; });
}
inline __m512 _mm512_min_ps(__m512 a, __m512 b) {
    return emulate<__m512>([&](int i) { return a.lane[i] < b.lane[i] ? a.lane[i] : b.lane[i]; });
}
inline __m512 _mm512_abs_ps(__m512 x) {
    return emulate<__m512>([&](int i) { return __builtin_fabsf(x.lane[i]); });
}
// No instruction but a sequence: halves onto each other.
inline float _mm512_reduce_max_ps(__m512 x) {
    for (int half = 8; half > 0; half /= 2)
        for (int i = 0; i < half; ++i)
            x.lane[i] = x.lane[i] > x.lane[i + half] ? x.lane[i] : x.lane[i + half];
    return x.lane[0];
}
inline __mmask16 _mm512_cmp_ps_mask(__m512 a, __m512 b, int predicate) {
    unsigned mask = 0;
    for (int i = 0; i < 16; ++i) {
        const float x = a.lane[i], y = b.lane[i];
        bool holds = false;
        switch (predicate) {
            case _CMP_GE_OQ:
                holds = x >= y;
                break;
            case _CMP_LT_OQ:
                holds = x < y;
                break;
            case _CMP_UNORD_Q:
                holds = x != x || y != y;
                break;
            default:
                HR_ICHECK(false, "predicate %d is not emulated", predicate);
        }
        mask |= unsigned{holds} << i;
    }
    return static_cast<__mmask16>(mask);
}
inline __m512 _mm512_mask_mov_ps(__m512 otherwise, __mmask16 mask, __m512 x) {
    return emulate<__m512>([&](int i) { return emulated_bit(mask, i) ? x.lane[i] : otherwise.lane[i]; });
}
inline __m512 _mm512_maskz_mov_ps(__mmask16 mask, __m512 x) {
    return emulate<__m512>([&](int i) { return emulated_bit(mask, i) ? x.lane[i] : 0.0f; });
}

// --- integers
// -----------------------------------------------------------------------------------------------

inline __m512i _mm512_add_epi32(__m512i a, __m512i b) {
    return emulate<__m512i>([&](int i) { return a.lane[i] + b.lane[i]; });
}
inline __m512i _mm512_mullo_epi32(__m512i a, __m512i b) {
    return emulate<__m512i>([&](int i) { return a.lane[i] * b.lane[i]; });
}
inline __m512i _mm512_and_si512(__m512i a, __m512i b) {
    return emulate<__m512i>([&](int i) { return a.lane[i] & b.lane[i]; });
}
inline __m512i _mm512_or_si512(__m512i a, __m512i b) {
    return emulate<__m512i>([&](int i) { return a.lane[i] | b.lane[i]; });
}
inline __m512i _mm512_mask_or_epi32(__m512i otherwise, __mmask16 mask, __m512i a, __m512i b) {
    return emulate<__m512i>(
        [&](int i) { return emulated_bit(mask, i) ? a.lane[i] | b.lane[i] : otherwise.lane[i]; });
}
inline __m512i _mm512_slli_epi32(__m512i x, unsigned count) {
    return emulate<__m512i>([&](int i) { return count < 32 ? x.lane[i] << count : 0; });
}
inline __m512i _mm512_srli_epi32(__m512i x, unsigned count) {
    return emulate<__m512i>([&](int i) { return count < 32 ? x.lane[i] >> count : 0; });
}
inline __m512i _mm512_sub_epi8(__m512i a, __m512i b) {
    uint8_t x[64], y[64];
    memcpy(x, &a, sizeof x);
    memcpy(y, &b, sizeof y);
    for (int i = 0; i < 64; ++i) x[i] = static_cast<uint8_t>(x[i] - y[i]);
    return emulated_cast<__m512i>(x);
}
inline __m512i _mm512_add_epi8(__m512i a, __m512i b) {
    uint8_t x[64], y[64];
    memcpy(x, &a, sizeof x);
    memcpy(y, &b, sizeof y);
    for (int i = 0; i < 64; ++i) x[i] = static_cast<uint8_t>(x[i] + y[i]);
    return emulated_cast<__m512i>(x);
}
// To half the bits, saturating: within each quarter, the numbers of a and then those of b.
template <class From, class To>
inline __m512i emulated_packs(__m512i a, __m512i b) {
    constexpr int kEach = 16 / sizeof(From);  // of a quarter
    From x[4 * kEach], y[4 * kEach];
    To out[8 * kEach];
    memcpy(x, &a, sizeof x);
    memcpy(y, &b, sizeof y);
    constexpr int kMost = sizeof(To) == 1 ? INT8_MAX : INT16_MAX;
    for (int i = 0; i < 8 * kEach; ++i) {
        const int at = i / (2 * kEach) * kEach + i % kEach;
        const int number = i / kEach % 2 ? y[at] : x[at];
        out[i] = static_cast<To>(number > kMost ? kMost : number < -kMost - 1 ? -kMost - 1 : number);
    }
    return emulated_cast<__m512i>(out);
}
inline __m512i _mm512_packs_epi32(__m512i a, __m512i b) {
    return emulated_packs<int32_t, int16_t>(a, b);
}
inline __m512i _mm512_packs_epi16(__m512i a, __m512i b) {
    return emulated_packs<int16_t, int8_t>(a, b);
}
// vpermb: six bits of an index count.
inline __m512i _mm512_permutexvar_epi8(__m512i index, __m512i table) {
    uint8_t x[64], y[64], out[64];
    memcpy(x, &table, sizeof x);
    memcpy(y, &index, sizeof y);
    for (int i = 0; i < 64; ++i) out[i] = x[y[i] & 63];
    return emulated_cast<__m512i>(out);
}
inline __m512i _mm512_maskz_permutexvar_epi8(uint64_t mask, __m512i index, __m512i table) {
    const __m512i whole = _mm512_permutexvar_epi8(index, table);
    uint8_t byte[64];
    memcpy(byte, &whole, sizeof byte);
    for (int i = 0; i < 64; ++i) byte[i] = mask >> i & 1 ? byte[i] : 0;
    return emulated_cast<__m512i>(byte);
}
// vpternlogd: bit by bit, that bit of `table` which a, b and c name, a the highest.
inline __m512i _mm512_ternarylogic_epi32(__m512i a, __m512i b, __m512i c, int table) {
    return emulate<__m512i>([&](int i) {
        uint32_t out = 0;
        for (int bit = 0; bit < 32; ++bit) {
            const uint32_t named =
                (a.lane[i] >> bit & 1) << 2 | (b.lane[i] >> bit & 1) << 1 | (c.lane[i] >> bit & 1);
            out |= static_cast<uint32_t>(table >> named & 1) << bit;
        }
        return out;
    });
}
// vshufps: of each four lanes, two of a and two of b, by two bits each.
inline __m512 _mm512_shuffle_ps(__m512 a, __m512 b, int which) {
    return emulate<__m512>([&](int i) {
        const int lane = i / 4 * 4 + (which >> i % 4 * 2 & 3);
        return i % 4 < 2 ? a.lane[lane] : b.lane[lane];
    });
}
// vpshufb: within each sixteen bytes; an index of 128 and more gives 0.
inline __m512i _mm512_shuffle_epi8(__m512i table, __m512i index) {
    uint8_t x[64], y[64], out[64];
    memcpy(x, &table, sizeof x);
    memcpy(y, &index, sizeof y);
    for (int i = 0; i < 64; ++i) out[i] = y[i] & 128 ? uint8_t{0} : x[i / 16 * 16 + (y[i] & 15)];
    return emulated_cast<__m512i>(out);
}
inline __m512i _mm512_broadcast_i32x4(__m128i x) {
    uint32_t lane[4];
    memcpy(lane, &x, sizeof lane);
    return emulate<__m512i>([&](int i) { return lane[i % 4]; });
}
// Within each quarter, the bytes from kFrom on of both in turns.
template <int kFrom>
inline __m512i emulated_unpack(__m512i a, __m512i b) {
    uint8_t x[64], y[64], out[64];
    memcpy(x, &a, sizeof x);
    memcpy(y, &b, sizeof y);
    for (int quarter = 0; quarter < 64; quarter += 16)
        for (int i = 0; i < 8; ++i) {
            out[quarter + 2 * i] = x[quarter + kFrom + i];
            out[quarter + 2 * i + 1] = y[quarter + kFrom + i];
        }
    return emulated_cast<__m512i>(out);
}
inline __m512i _mm512_unpacklo_epi8(__m512i a, __m512i b) {
    return emulated_unpack<0>(a, b);
}
inline __m512i _mm512_unpackhi_epi8(__m512i a, __m512i b) {
    return emulated_unpack<8>(a, b);
}
// Quarters: two of a, two of b, by two bits each.
inline __m512i _mm512_shuffle_i64x2(__m512i a, __m512i b, int which) {
    return emulate<__m512i>([&](int i) {
        const int quarter = which >> i / 4 * 2 & 3;
        return (i < 8 ? a : b).lane[quarter * 4 + i % 4];
    });
}
inline __m256i _mm512_extracti64x4_epi64(__m512i x, int half) {
    uint32_t lane[8];
    memcpy(lane, x.lane + 8 * half, sizeof lane);
    return emulated_cast<__m256i>(lane);
}
inline int _mm512_reduce_add_epi32(__m512i x) {
    uint32_t total = 0;
    for (uint32_t lane : x.lane) total += lane;
    return static_cast<int>(total);
}
// vpdpbusd: four unsigned bytes times four signed ones. Sums wrap; vpdpbusds is the one that saturates.
inline __m512i _mm512_dpbusd_epi32(__m512i sum, __m512i a, __m512i b) {
    uint8_t x[64];
    int8_t y[64];
    memcpy(x, &a, sizeof x);
    memcpy(y, &b, sizeof y);
    for (int i = 0; i < 64; ++i) sum.lane[i / 4] += static_cast<uint32_t>(int{x[i]} * int{y[i]});
    return sum;
}

// --- from one type to another
// -------------------------------------------------------------------------------

// vcvtps2dq: to nearest, halves to even; what does not fit, and what is not a number, gives INT32_MIN.
inline __m512i _mm512_cvtps_epi32(__m512 x) {
    return emulate<__m512i>([&](int i) {
        const bool fits = x.lane[i] >= -0x1p31f && x.lane[i] < 0x1p31f;
        return static_cast<uint32_t>(fits ? static_cast<int32_t>(__builtin_rintf(x.lane[i])) : INT32_MIN);
    });
}
inline __m512 _mm512_cvtepi32_ps(__m512i x) {
    return emulate<__m512>([&](int i) { return static_cast<float>(static_cast<int32_t>(x.lane[i])); });
}
inline __m512 _mm512_cvtph_ps(__m256i halves) {
    uint16_t half[16];
    memcpy(half, &halves, sizeof half);
    return emulate<__m512>([&](int i) { return _cvtsh_ss(half[i]); });
}
inline __m512i _mm512_cvtepi8_epi32(__m128i bytes) {
    int8_t byte[16];
    memcpy(byte, &bytes, sizeof byte);
    return emulate<__m512i>([&](int i) { return static_cast<uint32_t>(int32_t{byte[i]}); });
}
inline __m512i _mm512_cvtepu8_epi32(__m128i bytes) {
    uint8_t byte[16];
    memcpy(byte, &bytes, sizeof byte);
    return emulate<__m512i>([&](int i) { return uint32_t{byte[i]}; });
}
// vpmovdw: the low halves.
inline __m256i _mm512_cvtepi32_epi16(__m512i x) {
    uint16_t word[16];
    for (int i = 0; i < 16; ++i) word[i] = static_cast<uint16_t>(x.lane[i]);
    return emulated_cast<__m256i>(word);
}
// vpmovsdb: signed to signed, saturating.
inline __m128i _mm512_cvtsepi32_epi8(__m512i x) {
    int8_t byte[16];
    for (int i = 0; i < 16; ++i) {
        const int32_t lane = static_cast<int32_t>(x.lane[i]);
        byte[i] = static_cast<int8_t>(lane < -128 ? -128 : lane > 127 ? 127 : lane);
    }
    return emulated_cast<__m128i>(byte);
}
// vpmovusdb: unsigned to unsigned, saturating, so that what is negative as an int becomes 255.
inline __m128i _mm512_cvtusepi32_epi8(__m512i x) {
    uint8_t byte[16];
    for (int i = 0; i < 16; ++i) byte[i] = static_cast<uint8_t>(x.lane[i] > 255 ? 255 : x.lane[i]);
    return emulated_cast<__m128i>(byte);
}

// --- bfloat16
// -----------------------------------------------------------------------------------------------

// Subnormals are zeros of the same sign, on the way in and on the way out, whatever the thread's settings.
inline float emulated_flush(float x) {
    return __builtin_fabsf(x) < __FLT_MIN__ ? __builtin_copysignf(0.0f, x) : x;
}
// sum + a * b, rounded once, to nearest even.
inline float emulated_bf16_fma(uint16_t a, uint16_t b, float sum) {
    const float x = emulated_cast<float>(uint32_t{a} << 16), y = emulated_cast<float>(uint32_t{b} << 16);
    return emulated_flush(__builtin_fmaf(emulated_flush(x), emulated_flush(y), emulated_flush(sum)));
}
// vdpbf16ps: of each pair the upper product first.
inline __m512 _mm512_dpbf16_ps(__m512 sum, __m512bh a, __m512bh b) {
    return emulate<__m512>([&](int i) {
        const float upper = emulated_bf16_fma(a.lane[2 * i + 1], b.lane[2 * i + 1], sum.lane[i]);
        return emulated_bf16_fma(a.lane[2 * i], b.lane[2 * i], upper);
    });
}

}  // namespace headrace::HR_LEVEL

#if defined(HR_LEVEL_AMX)
#include "tiles.h"
#endif
