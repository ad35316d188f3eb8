// Bit planes added up by looking them up. Compiled once per level.
//
// Two planes at a time lie byte beside byte, so that one instruction weighs them, adds them and widens the sum
// to 16 bits. Those of a plane that is left over are of two outputs, whose sums are told apart at the end.
#pragma once

#include "headrace/lookup.h"
#include "headrace/simd_math.h"
#include "lut_linear/kernel.h"

namespace headrace::HR_LEVEL {
namespace {

constexpr int64_t kLutAhead = 4096;  // bytes from what is looked up to what is fetched

// The same planes for some rows: what they are looked up in, and where their sums are.
struct RunRows {
    const uint8_t* tables;  // of the first row
    int64_t stride;         // from a row's tables to the next one's
    int32_t* sums;          // [row][64]

    RunRows from(int64_t row) const { return {tables + row * stride, stride, sums + row * kBlock}; }
};

template <int kHalf>
inline void add_words(int32_t* sums, I16x32 x, int times) {
    store_i32(sums, load_i32(sums) + widened<kHalf>(x) * all_lanes(times));
}

// A pair of planes for kRows rows, kAtOnce times 32 outputs in registers together.
template <int kRows, int kAtOnce, bool kFetch>
inline void add_pair(const uint8_t* planes, int64_t octets, const RunRows& rows, int times) {
    for (int64_t part = 0; part < 2; part += kAtOnce) {
        I16x32 total[kRows][kAtOnce];
        HR_UNROLL
        for (int r = 0; r < kRows; ++r) {
            HR_UNROLL
            for (int u = 0; u < kAtOnce; ++u) total[r][u] = no_words();
        }
        for (int64_t o = 0; o < octets; ++o) {
            const uint8_t* from = planes + (2 * o + part) * 64;
            const uint8_t* tables = rows.tables + 32 * o;
            HR_UNROLL
            for (int u = 0; u < kAtOnce; ++u) {
                if constexpr (kFetch) prefetch(from + u * 64 + kLutAhead);
                const Bytes both = load_bytes(from + u * 64);
                const Bytes low = field(both, 0, 15), high = field(both, 4, 15);
                HR_UNROLL
                for (int r = 0; r < kRows; ++r) {
                    const uint8_t* table = tables + r * rows.stride;
                    total[r][u] = total[r][u] + weighted<1, 2>(look_up(load_table(table), low));
                    total[r][u] = total[r][u] + weighted<1, 2>(look_up(load_table(table + 16), high));
                }
            }
        }
        HR_UNROLL
        for (int r = 0; r < kRows; ++r) {
            HR_UNROLL
            for (int u = 0; u < kAtOnce; ++u) {
                int32_t* sums = rows.sums + r * kBlock + (part + u) * 32;
                add_words<0>(sums, total[r][u], times);
                add_words<1>(sums + 16, total[r][u], times);
            }
        }
    }
}

// The plane that is left over, for kRows rows.
template <int kRows, bool kFetch>
inline void add_single(const uint8_t* plane, int64_t octets, const RunRows& rows, int times) {
    I16x32 whole[kRows], upper[kRows];
    HR_UNROLL
    for (int r = 0; r < kRows; ++r) whole[r] = upper[r] = no_words();
    for (int64_t o = 0; o < octets; ++o) {
        if constexpr (kFetch) prefetch(plane + o * 64 + kLutAhead);
        const Bytes both = load_bytes(plane + o * 64);
        const Bytes low = field(both, 0, 15), high = field(both, 4, 15);
        HR_UNROLL
        for (int r = 0; r < kRows; ++r) {
            const uint8_t* table = rows.tables + r * rows.stride + 32 * o;
            const Bytes first = look_up(load_table(table), low), second = look_up(load_table(table + 16), high);
            whole[r] = whole[r] + words(first) + words(second);
            upper[r] = upper[r] + weighted<0, 1>(first) + weighted<0, 1>(second);
        }
    }
    HR_UNROLL
    for (int r = 0; r < kRows; ++r) {
        int32_t* sums = rows.sums + r * kBlock;
        const I16x32 lower = less_upper(whole[r], upper[r]);
        add_words<0>(sums, lower, times);
        add_words<0>(sums + 16, upper[r], times);
        add_words<1>(sums + 32, lower, times);
        add_words<1>(sums + 48, upper[r], times);
    }
}

// A run for kRows rows: all of its planes.
template <int kBits, int kRows, bool kFetch>
inline void add_planes(const uint8_t* planes, int64_t octets, const RunRows& rows) {
#if defined(HR_LEVEL_AVX512)
    constexpr int kAtOnce = 2;
#else
    constexpr int kAtOnce = kRows > 2 ? 1 : 2;
#endif
    HR_UNROLL
    for (int p = 0; p < kBits / 2; ++p)
        add_pair<kRows, kAtOnce, kFetch>(planes + p * octets * 128, octets, rows, 1 << 2 * p);
    const uint8_t* single = planes + kBits / 2 * octets * 128;
    if constexpr (kBits % 2 == 1 && kRows <= 2) add_single<kRows, kFetch>(single, octets, rows, 1 << (kBits - 1));
    if constexpr (kBits % 2 == 1 && kRows > 2) {
        add_single<2, kFetch>(single, octets, rows, 1 << (kBits - 1));
        add_single<2, false>(single, octets, rows.from(2), 1 << (kBits - 1));
    }
}

// A run for any number of rows.
template <int kBits>
void add_run(const uint8_t* planes, int64_t octets, const RunRows& rows, int64_t count) {
    int64_t row = 0;
    auto take = [&]<int kRows>() {
        for (; row + kRows <= count; row += kRows) {
            if (row == 0)
                add_planes<kBits, kRows, true>(planes, octets, rows);
            else
                add_planes<kBits, kRows, false>(planes, octets, rows.from(row));
        }
    };
    take.template operator()<4>();
    take.template operator()<2>();
    take.template operator()<1>();
}

}  // namespace
}  // namespace headrace::HR_LEVEL
