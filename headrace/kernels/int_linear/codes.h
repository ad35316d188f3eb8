// Packed codes back in registers. Compiled once per level.
#pragma once

#include "headrace/dots.h"
#include "headrace/simd_math.h"
#include "int_linear/kernel.h"

namespace headrace::HR_LEVEL {
namespace {

constexpr int64_t kTiles = kBlock / kTile;
constexpr int64_t kAhead = 4096;  // bytes from what is unpacked to what is fetched

// `width` bits of every byte, moved from bit `from` to bit `to`.
inline Bytes moved(Bytes x, int from, int to, int width) {
    const int mask = ((1 << width) - 1) << to;
    return from >= to ? field(x, from - to, mask) : raised(x, to - from, mask);
}

// Quad `k` of a tile, put together from its planes. The compiler knows k: loops over quads are unrolled.
template <int kBits>
[[gnu::always_inline]] inline Bytes quad_of(int k, const uint8_t* p) {
    if constexpr (kBits == 8) return load_bytes(p + 64 * k);
    constexpr int kHas4 = kBits & 4, kHas2 = kBits & 2;
    const uint8_t* p2 = p + 64 * kHas4;
    const uint8_t* p1 = p2 + 64 * kHas2;
    Bytes out{};
    if constexpr (kHas4) out = moved(load_bytes(p + k % 4 * 64), k / 4 * 4, 0, 4);
    if constexpr (kHas2) out = out | moved(load_bytes(p2 + k % 2 * 64), k / 2 * 2, kHas4, 2);
    if constexpr (kBits & 1) out = out | moved(load_bytes(p1), k, kHas4 + kHas2, 1);
    return out;
}

// The eight quads of one tile of one chunk.
template <int kBits>
inline void unpack(const uint8_t* p, Bytes (&quad)[kQuads]) {
    HR_UNROLL
    for (int k = 0; k < kQuads; ++k) quad[k] = quad_of<kBits>(k, p);
}

// One group of one block: where its parts lie, and what its sums start from.
struct Record {
    using Total = float;  // of all groups

    const uint16_t* scales;
    const uint8_t* zeros;  // null: every zero point is 2^(bits-1)
    const uint8_t* chunks;
    int64_t count;  // of chunks

    Record(const IntShape& shape, const uint8_t* at, int64_t group)
        : scales(reinterpret_cast<const uint16_t*>(at)),
          zeros(shape.zeros ? at + 2 * kBlock : nullptr),
          chunks(at + shape.head_bytes()),
          count(shape.group_chunks(group)) {}

    const uint8_t* end(const IntShape& shape) const { return chunks + count * shape.chunk_bytes(); }
};

// sum (code - zero) * a = sum (code - centre) * a - (zero - centre) * sum a: the second part is where the sum
// starts.
template <int kBits>
inline I32x16 start(const Record& record, int64_t tile, int32_t row_sum) {
    if (!record.zeros) return all_lanes((kCentre<kBits> - (1 << (kBits - 1))) * row_sum);
    return load_u8(record.zeros + tile * kTile) * all_lanes(-row_sum) + all_lanes(kCentre<kBits> * row_sum);
}

inline void add_group(float* total, I32x16 group, const Record& record, int64_t tile) {
    store(total, fma(to_float(group), load_f16(record.scales + tile * kTile), load(total)));
}

inline void finish(const IntLinear& a, int64_t block, int64_t row, const float* totals) {
    const F32x16 scale = broadcast(a.rows.scales[row]);
    for (int64_t t = 0; t < kTiles; ++t)
        write_outputs(a.end, row, block * kBlock + t * kTile, load(totals + t * kTile) * scale);
}

}  // namespace
}  // namespace headrace::HR_LEVEL
