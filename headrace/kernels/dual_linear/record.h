// One group of one block, and what becomes of its sums. Compiled once per level.
//
//   total + step * (sum of code * a - zero * sum of a)
//
// int_linear/dots.h adds up what is in parentheses.
#pragma once

#include "dual_linear/kernel.h"
#include "int_linear/codes.h"

namespace headrace::HR_LEVEL {
namespace {

struct DualRecord {
    using Total = int32_t;  // of all groups

    const uint8_t* chunks;
    int64_t count;                                     // of chunks
    alignas(64) uint8_t steps[kBlock], zeros[kBlock];  // steps less one

    DualRecord(const DualShape& shape, const uint8_t* at, int64_t group)
        : chunks(at + shape.head_bytes()), count(shape.group_chunks(group)) {
        const Bytes both = load_bytes(at);
        store_bytes(steps, field(both, 0, 255 >> shape.bits));
        store_bytes(zeros, field(both, 8 - shape.bits, shape.top()));
    }

    const uint8_t* end(const DualShape& shape) const { return chunks + count * shape.chunk_bytes(); }
};

template <int kBits>
inline I32x16 start(const DualRecord& record, int64_t tile, int32_t row_sum) {
    static_assert(kCentre<kBits> == 0);
    return load_u8(record.zeros + tile * kTile) * all_lanes(-row_sum);
}

inline void add_group(int32_t* total, I32x16 group, const DualRecord& record, int64_t tile) {
    const I32x16 step = load_u8(record.steps + tile * kTile) + all_lanes(1);
    store_i32(total, load_i32(total) + group * step);
}

// The only floats: (sum * scale of the output) * scale of the row.
inline void finish(const DualLinear& a, int64_t block, int64_t row, const int32_t* totals) {
    const float* scales = reinterpret_cast<const float*>(a.packed + block * a.shape.block_bytes());
    const F32x16 row_scale = broadcast(a.rows.scales[row]);
    for (int64_t t = 0; t < kTiles; ++t)
        write_outputs(a.end, row, block * kBlock + t * kTile,
                      to_float(load_i32(totals + t * kTile)) * load(scales + t * kTile) * row_scale);
}

}  // namespace
}  // namespace headrace::HR_LEVEL
