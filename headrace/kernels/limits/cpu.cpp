// limits: the most that this processor does of what kernels are made of. Compiled once per level.
//
// No operation, so there is no reference and nothing to compare: loops without loads for the arithmetic, and
// a loop without arithmetic for reading. A kernel's speed is a fraction of these.
#include <string.h>

#include "headrace/parallel.h"
#include "headrace/simd_int.h"
#include "limits/kernel.h"

#if defined(HR_LEVEL_AMX)
#include "headrace/amx.h"
#endif

namespace headrace::HR_LEVEL {
namespace {

constexpr int64_t kPiece = 1 << 20;  // bytes that a thread reads at once
constexpr int64_t kAhead = 4096;     // bytes; further ahead than a page pays only with huge ones

// The same value, of which the compiler no longer knows anything: it must compute what goes in, and cannot
// merge two that are equal. Through a copy, or the original would live in memory, not in registers.
template <class T>
inline T hidden(T x) {
    asm volatile("" : "+m"(x));
    return x;
}

void fill(uint8_t* data, int64_t bytes, int byte) {
    in_pieces(bytes, kPiece, [&](int64_t begin, int64_t end) {
        memset(data + begin, byte, static_cast<size_t>(end - begin));
    });
}

void read(const uint8_t* data, int64_t bytes) {
    constexpr int64_t kLine = 64, kLines = 8;
    in_pieces(bytes / (kLine * kLines), kPiece / (kLine * kLines), [&](int64_t begin, int64_t end) {
        Bytes seen[kLines];
        for (Bytes& line : seen) line = load_bytes(data + begin * kLine * kLines);
        for (int64_t i = begin; i < end; ++i) {
            const uint8_t* p = data + i * kLine * kLines;
#pragma GCC unroll 8
            for (int64_t line = 0; line < kLines; ++line) {
                prefetch(p + line * kLine + kAhead);  // beyond the end it does nothing
                seen[line] = seen[line] | load_bytes(p + line * kLine);
            }
        }
        for (const Bytes& line : seen) hidden(line);
    });
}

// The same in registers, at no cost: what is the same in every round is computed in every round all the same,
// and GCC does not copy sums around.
#if defined(HR_LEVEL_AVX512) && !defined(HR_EMULATED)
template <class T>
inline T held(T x) {
    auto v = x.v;
    asm volatile("" : "+v"(v));
    return {v};
}
#elif defined(HR_LEVEL_AVX2)
template <class T>
inline T held(T x) {
    auto lo = x.lo, hi = x.hi;
    asm volatile("" : "+x"(lo), "+x"(hi));
    return {lo, hi};
}
#else
template <class T>
inline T held(T x) {
    return x;
}
#endif
inline int32_t held(int32_t x) {
    asm volatile("" : "+r"(x));
    return x;
}

// Enough sums to hide the latency of an instruction, few enough for the registers.
#if defined(HR_LEVEL_AVX512)
constexpr int kSums = 12;
#elif defined(HR_LEVEL_AVX2)
constexpr int kSums = 6;  // two registers each
#else
constexpr int kSums = 2;  // four registers each
#endif

// step(sum) `rounds` times over for each of kSums sums, in each piece.
template <class T, class Step>
int64_t repeat(int64_t pieces, int64_t rounds, T start, int64_t operations, const Step& step) {
    in_pieces(pieces, 1, [&](int64_t begin, int64_t end) {
        const Step mine = step;  // its registers, not the caller's memory
        T sums[kSums];
        for (T& sum : sums) sum = hidden(start);
        for (int64_t i = 0; i < (end - begin) * rounds; ++i) {
#pragma GCC unroll 12
            for (int k = 0; k < kSums; ++k) sums[k] = held(mine(sums[k]));
        }
        for (const T& sum : sums) hidden(sum);
    });
    return pieces * rounds * kSums * operations;
}

int64_t float32(int64_t pieces, int64_t rounds) {
    const F32x16 a = hidden(broadcast(0.5f)), b = hidden(broadcast(0.25f));
    return repeat(pieces, rounds, a, 2 * kLanes, [a, b](F32x16 sum) {
#if defined(HR_LEVEL_AVX2) || defined(HR_LEVEL_AVX512)
        return fma(a, b, sum);
#else
        return sum * a + b;  // without the instruction, fma is a call of the C library
#endif
    });
}

#if defined(HR_LEVEL_AMX)

// step() on the tiles 0 to 3, sixteen rows of 64 bytes times sixteen columns.
template <class Step>
int64_t repeat_tiles(int64_t pieces, int64_t rounds, int64_t operations, const Step& step) {
    alignas(64) uint8_t factor[1024];
    for (int i = 0; i < 1024; ++i) factor[i] = static_cast<uint8_t>(i % 60);  // finite as bfloat16
    in_pieces(pieces, 1, [&](int64_t begin, int64_t end) {
        const Tiles tiles(16, 64);
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
        _tile_loadd(4, factor, 64);
        _tile_loadd(5, factor, 64);
        _tile_loadd(6, factor, 64);
        _tile_loadd(7, factor, 64);
        for (int64_t i = 0; i < (end - begin) * rounds; ++i) step();
    });
    return pieces * rounds * 4 * operations;
}

int64_t int8(int64_t pieces, int64_t rounds) {
    return repeat_tiles(pieces, rounds, 2 * 16 * 16 * 64, [] {
        _tile_dpbssd(0, 4, 6);
        _tile_dpbssd(1, 4, 7);
        _tile_dpbssd(2, 5, 6);
        _tile_dpbssd(3, 5, 7);
    });
}

int64_t bf16_products(int64_t pieces, int64_t rounds) {
    return repeat_tiles(pieces, rounds, 2 * 16 * 16 * 32, [] {
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    });
}

#else

int64_t int8(int64_t pieces, int64_t rounds) {
    uint8_t some[64];
    for (int i = 0; i < 64; ++i) some[i] = static_cast<uint8_t>(i % 16);
    const Bytes codes = hidden(load_bytes(some));
    const int32_t four = hidden(int32_t{0x7f81027f});
#if defined(HR_LEVEL_AVX2)
    // Of narrow codes, whose sums may stay in sixteen bits for a while: AVX2's fastest kind
    // (headrace/dots.h).
    const __m256i all = _mm256_set1_epi32(four);
    return repeat(pieces, rounds, codes, 2 * 64, [codes, all](Bytes sum) {
        const Bytes mine = held(codes);
        return Bytes{_mm256_add_epi16(sum.lo, _mm256_maddubs_epi16(mine.lo, all)),
                     _mm256_add_epi16(sum.hi, _mm256_maddubs_epi16(mine.hi, all))};
    });
#else
    return repeat(pieces, rounds, all_lanes(1), 2 * 64, [codes, four](I32x16 sum) {
#if defined(HR_LEVEL_AVX512)
        return dot<7>(sum, codes, four);
#else
        return dot<7>(sum, codes, held(four));
#endif
    });
#endif
}

#if defined(HR_LEVEL_AVX512)
int64_t bf16_products(int64_t pieces, int64_t rounds) {
    const __m512 ones = hidden(_mm512_set1_ps(0.5f));  // pairs of 0 and 0.5
    const __m512bh pairs = (__m512bh)ones;
    return repeat(pieces, rounds, broadcast(1.0f), 2 * 32,
                  [pairs](F32x16 sum) { return F32x16{_mm512_dpbf16_ps(sum.v, pairs, pairs)}; });
}
#else
constexpr Arithmetic bf16_products = nullptr;
#endif

#endif

}  // namespace

constinit const LimitsTable limits = {fill, read, int8, float32, bf16_products};

}  // namespace headrace::HR_LEVEL
