// Bit planes in the wide order, looked up in tables of 64 bytes. Compiled for levels that have these.
//
// Four neighbouring bytes are of one output, so that one instruction weighs them and adds them to a sum of 32
// bits: every plane costs the same, and a group leaves nothing to be added up but sixteen sums in a register.
#pragma once

#include "headrace/lookup.h"
#include "headrace/product.h"
#include "lut_linear/record.h"

namespace headrace::HR_LEVEL {
namespace {

constexpr bool kWide = true;
constexpr int64_t kTiles = kBlock / kTile;

// Where the first byte of an output's plane lies, in the first chunk of a record.
inline int64_t place_of(int bits, int b, int64_t output) {
    return (output / kTile * bits + b) * 64 + output % kTile * 4;
}

// One output's codes of a group.
inline void write_codes(int bits, const uint8_t* codes, int64_t inputs, int64_t output, uint8_t* planes) {
    for (int64_t c = 0; c < inputs / kChunk; ++c, codes += kChunk, planes += kBlock * 4 * bits) {
        for (int64_t k = 0; k < 4; ++k) {
            uint64_t eight;
            memcpy(&eight, codes + 4 * k, 4);
            memcpy(reinterpret_cast<uint8_t*>(&eight) + 4, codes + kChunk / 2 + 4 * k, 4);
            for (int b = 0; b < bits; ++b) planes[place_of(bits, b, output) + k] = gathered(eight >> b);
        }
    }
}

inline int read_code(int bits, const LutRecord& record, int64_t output, int64_t input) {
    const int64_t i = input % kChunk, half = i / (kChunk / 2);
    const uint8_t* from = record.planes + input / kChunk * kBlock * 4 * bits + i / 4 % 4;
    int code = 0;
    for (int b = 0; b < bits; ++b) code |= (from[place_of(bits, b, output)] >> (4 * half + i % 4) & 1) << b;
    return code;
}

// One row waits for memory, whose lines the processor's own prefetching brings sooner when left alone; more
// rows take longer over a line than it looks ahead.
template <int kRows>
inline void fetch(const uint8_t* planes) {
    if constexpr (kRows > 1) prefetch_second(planes + kLutAhead);
}

// The tables of a chunk: those that low nibbles choose from, and those of high ones.
struct ChunkTables {
    Bytes low, high;

    ChunkTables() = default;
    explicit ChunkTables(const uint8_t* tables) : low(load_bytes(tables)), high(load_bytes(tables + 64)) {}
};

// Sums of a group, for kRows rows.
template <int kBits, int kRows>
struct GroupSums {
    I32x16 sums[kRows][kTiles];

    explicit GroupSums(const int32_t (&starts)[kRows]) {
        HR_UNROLL
        for (int r = 0; r < kRows; ++r) {
            HR_UNROLL
            for (int t = 0; t < kTiles; ++t) sums[r][t] = all_lanes(starts[r]);
        }
    }

    void add_chunk(const uint8_t* planes, const ChunkTables (&tables)[kRows]) {
        HR_UNROLL
        for (int t = 0; t < kTiles; ++t) {
            HR_UNROLL
            for (int b = 0; b < kBits; ++b, planes += 64) {
                fetch<kRows>(planes);
                const Bytes both = load_bytes(planes);
                const Bytes low = places<0>(both), high = places<4>(both);
                HR_UNROLL
                for (int r = 0; r < kRows; ++r) {
                    const Bytes found = look_up(tables[r].low, low) + look_up(tables[r].high, high);
                    sums[r][t] = dot<8>(sums[r][t], found, 0x01010101 << b);
                }
            }
        }
    }
};

// All groups of a block, for kRows rows from `row` on.
template <int kBits, int kRows>
void multiply_rows_of_block(const LutLinear& a, int64_t block, int64_t row) {
    const IntShape& shape = a.shape;
    const int64_t groups = shape.groups(), stride = shape.padded() * 4;
    const uint8_t *at = a.packed + block * shape.block_bytes(), *tables = a.rows.tables + row * stride;
    F32x16 totals[kRows][kTiles];
    HR_UNROLL
    for (int r = 0; r < kRows; ++r) {
        HR_UNROLL
        for (int t = 0; t < kTiles; ++t) totals[r][t] = broadcast(0);
    }
    for (int64_t g = 0; g < groups; ++g) {
        const LutRecord record(shape, at, g);
        fetch<kRows>(at);
        fetch<kRows>(at + 64);
        int32_t starts[kRows];
        for (int r = 0; r < kRows; ++r)
            starts[r] = start<kBits>(a.rows.sums[(row + r) * groups + g], record.inputs / 4);
        GroupSums<kBits, kRows> group(starts);
        const uint8_t* planes = record.planes;
        for (; planes < record.end(shape); planes += shape.chunk_bytes(), tables += kChunk * 4) {
            ChunkTables of_rows[kRows];
            HR_UNROLL
            for (int r = 0; r < kRows; ++r) of_rows[r] = ChunkTables(tables + r * stride);
            group.add_chunk(planes, of_rows);
        }
        HR_UNROLL
        for (int t = 0; t < kTiles; ++t) {
            const F32x16 scale = load_f16(record.scales + t * kTile);
            HR_UNROLL
            for (int r = 0; r < kRows; ++r) {
                const float row_scale = 0.5f * a.rows.scales[(row + r) * groups + g];
                totals[r][t] = fma(to_float(group.sums[r][t]), scale * broadcast(row_scale), totals[r][t]);
            }
        }
        at = planes;
    }
    HR_UNROLL
    for (int r = 0; r < kRows; ++r) {
        HR_UNROLL
        for (int t = 0; t < kTiles; ++t)
            write_outputs(a.end, row + r, block * kBlock + t * kTile, totals[r][t]);
    }
}

// As many rows at a time as there are registers for: the block is in the second-level cache after the first.
template <int kBits>
void multiply_block(const LutLinear& a, int64_t block) {
    int64_t row = 0;
    auto take = [&]<int kRows>() {
        for (; row + kRows <= a.rows.rows; row += kRows) multiply_rows_of_block<kBits, kRows>(a, block, row);
    };
    take.template operator()<4>();
    take.template operator()<2>();
    take.template operator()<1>();
}

}  // namespace
}  // namespace headrace::HR_LEVEL
