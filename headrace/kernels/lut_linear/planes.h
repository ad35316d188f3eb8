// Bit planes added up by looking them up. Compiled once per level.
//
// Two planes at a time lie byte beside byte, so that one instruction weighs them, adds them and widens the
// sum to 16 bits. Those of a plane that is left over are of two outputs, whose sums are told apart at the
// end.
#pragma once

#include "headrace/lookup.h"
#include "headrace/simd_math.h"
#include "lut_linear/kernel.h"

namespace headrace::HR_LEVEL {
namespace {

constexpr int64_t kLutAhead = 4096;  // bytes from what is looked up to what is fetched

// A run of a group of a block, and all rows.
struct Run {
    const uint8_t* planes;
    int64_t octets;
    bool starts, ends;        // of the group
    const uint16_t* scales;   // [64]
    int64_t quads;            // of the group
    const uint8_t* tables;    // of the first row
    int64_t stride;           // from a row's tables to the next one's
    const float* row_scales;  // of the first row, [rows, groups]
    const int32_t* row_sums;  // the same
    int64_t groups;
    int32_t* sums;  // [row][64], of a group that is not finished
    float* totals;  // [row][64], of whole groups
};

// A code q stands for scale * (q - 2^(b-1)), and at one bit for scale * (q - 1/2). What is looked up in the
// planes, times 2^plane, adds up to the sum of (2 q - 2^b + 1) * a, that is twice the product and the row's
// sum, and of kTableZero (2^b - 1) for each quad.
template <int kBits>
inline int32_t start(int32_t row_sum, int64_t quads) {
    return -(kBits > 1 ? row_sum : 0) - kTableZero * ((1 << kBits) - 1) * static_cast<int32_t>(quads);
}

// What sixteen outputs from `first` on have got from the planes from kPlane on.
template <int kBits, int kPlane>
inline void add_up(const Run& run, int64_t row, int64_t first, I32x16 sum) {
    int32_t* const sums = run.sums + row * kBlock + first;
    if constexpr (kPlane > 0) sum = sum * all_lanes(1 << kPlane);
    if (kPlane == 0 && run.starts)
        sum = sum + all_lanes(start<kBits>(run.row_sums[row * run.groups], run.quads));
    else
        sum = sum + load_i32(sums);
    if (kPlane + 2 < kBits || !run.ends) return store_i32(sums, sum);
    const F32x16 scale = load_f16(run.scales + first) * broadcast(0.5f * run.row_scales[row * run.groups]);
    float* const total = run.totals + row * kBlock + first;
    store(total, fma(to_float(sum), scale, load(total)));
}

// What an octet of 64 bytes of planes is looked up as.
struct Indices {
    Bytes low, high;

    explicit Indices(const uint8_t* planes) {
        const Bytes both = load_bytes(planes);
        low = field(both, 0, 15);
        high = field(both, 4, 15);
    }
    Bytes in(const uint8_t* tables) const {
        return look_up(load_table(tables), low) + look_up(load_table(tables + 16), high);
    }
};

// Planes kPlane and kPlane + 1 for kRows rows, kAtOnce times 32 outputs in registers together.
template <int kBits, int kPlane, int kRows, int kAtOnce, bool kFetch>
inline void add_pair(const Run& run, const uint8_t* planes, int64_t row) {
    for (int64_t part = 0; part < 2; part += kAtOnce) {
        I16x32 total[kRows][kAtOnce];
        HR_UNROLL
        for (int r = 0; r < kRows; ++r) {
            HR_UNROLL
            for (int u = 0; u < kAtOnce; ++u) total[r][u] = no_words();
        }
        for (int64_t o = 0; o < run.octets; ++o) {
            const uint8_t* from = planes + (2 * o + part) * 64;
            const uint8_t* tables = run.tables + row * run.stride + 32 * o;
            HR_UNROLL
            for (int u = 0; u < kAtOnce; ++u) {
                if constexpr (kFetch) prefetch(from + u * 64 + kLutAhead);
                const Indices indices(from + u * 64);
                HR_UNROLL
                for (int r = 0; r < kRows; ++r)
                    total[r][u] = total[r][u] + weighted<1, 2>(indices.in(tables + r * run.stride));
            }
        }
        HR_UNROLL
        for (int r = 0; r < kRows; ++r) {
            HR_UNROLL
            for (int u = 0; u < kAtOnce; ++u) {
                add_up<kBits, kPlane>(run, row + r, (part + u) * 32, widened<0>(total[r][u]));
                add_up<kBits, kPlane>(run, row + r, (part + u) * 32 + 16, widened<1>(total[r][u]));
            }
        }
    }
}

// The plane that is left over, for kRows rows.
template <int kBits, int kRows, bool kFetch>
inline void add_single(const Run& run, const uint8_t* plane, int64_t row) {
    constexpr int kPlane = kBits - 1;
    I16x32 whole[kRows], upper[kRows];
    HR_UNROLL
    for (int r = 0; r < kRows; ++r) whole[r] = upper[r] = no_words();
    for (int64_t o = 0; o < run.octets; ++o) {
        if constexpr (kFetch) prefetch(plane + o * 64 + kLutAhead);
        const Indices indices(plane + o * 64);
        HR_UNROLL
        for (int r = 0; r < kRows; ++r) {
            const Bytes found = indices.in(run.tables + (row + r) * run.stride + 32 * o);
            whole[r] = whole[r] + words(found);
            upper[r] = upper[r] + weighted<0, 1>(found);
        }
    }
    HR_UNROLL
    for (int r = 0; r < kRows; ++r) {
        const I16x32 lower = less_upper(whole[r], upper[r]);
        add_up<kBits, kPlane>(run, row + r, 0, widened<0>(lower));
        add_up<kBits, kPlane>(run, row + r, 16, widened<0>(upper[r]));
        add_up<kBits, kPlane>(run, row + r, 32, widened<1>(lower));
        add_up<kBits, kPlane>(run, row + r, 48, widened<1>(upper[r]));
    }
}

// All planes for kRows rows.
template <int kBits, int kRows, bool kFetch>
inline void add_planes(const Run& run, int64_t row) {
#if defined(HR_LEVEL_AVX512)
    constexpr int kAtOnce = 2, kSingles = kRows;
#else
    constexpr int kAtOnce = kRows > 2 ? 1 : 2, kSingles = kRows > 2 ? 2 : kRows;
#endif
    const int64_t pair = run.octets * 128;
    if constexpr (kBits >= 2) add_pair<kBits, 0, kRows, kAtOnce, kFetch>(run, run.planes, row);
    if constexpr (kBits == 4) add_pair<kBits, 2, kRows, kAtOnce, kFetch>(run, run.planes + pair, row);
    if constexpr (kBits % 2 == 1) {
        const uint8_t* plane = run.planes + kBits / 2 * pair;
        add_single<kBits, kSingles, kFetch>(run, plane, row);
        if constexpr (kSingles < kRows) add_single<kBits, kSingles, false>(run, plane, row + kSingles);
    }
}

// All rows, as many at a time as there are registers for.
template <int kBits>
void add_run(const Run& run, int64_t rows) {
    int64_t row = 0;
    auto take = [&]<int kRows>() {
        for (; row + kRows <= rows; row += kRows) {
            if (row == 0)
                add_planes<kBits, kRows, true>(run, row);
            else
                add_planes<kBits, kRows, false>(run, row);
        }
    };
    take.template operator()<4>();
    take.template operator()<2>();
    take.template operator()<1>();
}

}  // namespace
}  // namespace headrace::HR_LEVEL
