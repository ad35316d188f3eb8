// Bit planes in the narrow order, looked up in tables of 16 bytes. Compiled for levels that have no wider
// ones.
//
// Two planes at a time lie byte beside byte, so that one instruction weighs them, adds them and widens the
// sum to 16 bits. Those of a plane that is left over are of two outputs, whose sums are told apart at the
// end.
#pragma once

#include "headrace/lookup.h"
#include "headrace/parallel.h"
#include "headrace/product.h"
#include "lut_linear/record.h"

namespace headrace::HR_LEVEL {
namespace {

constexpr bool kWide = false;

// Where the byte of an output lies in an octet of a pair's first plane, and in one of a single plane.
inline int64_t place_in_pair(int64_t output) {
    return output / 16 * 32 + output % 16 * 2;
}
inline int64_t place_in_single(int64_t output) {
    return output / 32 * 32 + output % 16 * 2 + output / 16 % 2;
}

// Where the byte of an output is, in the first octet of bit plane `b` of a run.
inline int64_t place_of(int bits, int b, int64_t octets, int64_t output) {
    const bool single = bits % 2 == 1 && b == bits - 1;
    return b / 2 * octets * 128 + (single ? place_in_single(output) : place_in_pair(output) + b % 2);
}
// From an octet of a bit plane to the next one.
inline int64_t octet_bytes(int bits, int b) {
    return bits % 2 == 1 && b == bits - 1 ? 64 : 128;
}

// One output's codes of a group.
inline void write_codes(int bits, const uint8_t* codes, int64_t inputs, int64_t output, uint8_t* planes) {
    for (; inputs > 0; inputs -= kRun, codes += kRun, planes += kRun / 8 * kBlock * bits) {
        const int64_t octets = (inputs < kRun ? inputs : kRun) / 8;
        for (int b = 0; b < bits; ++b) {
            uint8_t* to = planes + place_of(bits, b, octets, output);
            for (int64_t o = 0; o < octets; ++o, to += octet_bytes(bits, b)) {
                uint64_t eight;
                memcpy(&eight, codes + 8 * o, sizeof eight);
                *to = gathered(eight >> b);
            }
        }
    }
}

inline int read_code(int bits, const LutRecord& record, int64_t output, int64_t input) {
    const int64_t first = input / kRun * kRun, octet = (input - first) / 8;
    const int64_t octets = (record.inputs - first < kRun ? record.inputs - first : kRun) / 8;
    const uint8_t* planes = record.planes + first / 8 * kBlock * bits;
    int code = 0;
    for (int b = 0; b < bits; ++b) {
        const int64_t place = place_of(bits, b, octets, output) + octet * octet_bytes(bits, b);
        code |= (planes[place] >> input % 8 & 1) << b;
    }
    return code;
}

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
                if constexpr (kFetch) prefetch_second(from + u * 64 + kLutAhead);
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
        if constexpr (kFetch) prefetch_second(plane + o * 64 + kLutAhead);
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

// All planes for kRows rows. In one function with other numbers of rows, sums would leave their registers.
template <int kBits, int kRows, bool kFetch>
__attribute__((noinline)) void add_planes(const Run& run, int64_t row) {
    constexpr int kAtOnce = kRows > 2 ? 1 : 2, kSingles = kRows > 2 ? 2 : kRows;
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

template <int kBits>
void multiply_block(const LutLinear& a, int64_t block) {
    const IntShape& shape = a.shape;
    const int64_t count = a.rows.rows * kBlock;
    float* totals = static_cast<float*>(scratch(Scratch::piece, 2 * count * 4));
    int32_t* sums = reinterpret_cast<int32_t*>(totals + count);
    memset(totals, 0, static_cast<size_t>(count * 4));
    const uint8_t* at = a.packed + block * shape.block_bytes();
    const uint8_t* tables = a.rows.tables;
    for (int64_t g = 0; g < shape.groups(); ++g) {
        const LutRecord record(shape, at, g);
        prefetch_second(at + kLutAhead);
        prefetch_second(at + kLutAhead + 64);
        for (int64_t i = 0; i < record.inputs; i += kRun) {
            const bool ends = record.inputs - i <= kRun;
            const int64_t inputs = ends ? record.inputs - i : kRun;
            add_run<kBits>({record.planes + i / kChunk * shape.chunk_bytes(), inputs / 8, i == 0, ends,
                            record.scales, record.inputs / 4, tables, shape.padded() * 4, a.rows.scales + g,
                            a.rows.sums + g, shape.groups(), sums, totals},
                           a.rows.rows);
            tables += inputs * 4;
        }
        at = record.end(shape);
    }
    for (int64_t row = 0; row < a.rows.rows; ++row)
        for (int64_t i = 0; i < kBlock; i += kLanes)
            write_outputs(a.end, row, block * kBlock + i, load(totals + row * kBlock + i));
}

}  // namespace
}  // namespace headrace::HR_LEVEL
