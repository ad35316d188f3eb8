// Sums inside a group: 4-bit codes times signed bytes, then times the group's step. Compiled once per level.
//
//   total + step * (sum of code * a - zero * sum of a)
//
// AVX2 has the 16-bit sums of one chunk multiplied by the step where it widens them, which costs nothing; the
// other levels multiply once per group or slice of one. The integers are the same. On the way totals may pass
// 2^31 and wrap around, because the zeros of a group are taken off before all of its codes are added; what
// they come to does not (kernel.h), and is right.
#pragma once

#include "dual_linear/kernel.h"
#include "int_linear/codes.h"

namespace headrace::HR_LEVEL {
namespace {

#if defined(HR_LEVEL_AVX2)

constexpr bool kEveryChunk = true;  // sums are added to the total after every chunk

// Two sums of 16 bits per lane: the eight quads of a chunk give at most 8 * 2 * 15 * 127 = 30480.
struct Sums {
    __m256i lo, hi;
};

// Sixteen outputs in one group.
struct Head {
    I32x16 steps;  // in both halves of a lane
    I32x16 shift;  // step * zero

    Head(I32x16 step, I32x16 zero) : steps(step * all_lanes(0x10001)), shift(step * zero) {}
};

inline Sums no_sums() {
    return {_mm256_setzero_si256(), _mm256_setzero_si256()};
}
inline Sums start(I32x16& total, const Head& head, int32_t row_sum) {
    total = total + head.shift * all_lanes(-row_sum);
    return no_sums();
}
inline Sums add_quad(Sums sums, Bytes codes, int32_t four) {
    const __m256i all = _mm256_set1_epi32(four);
    return {_mm256_add_epi16(sums.lo, _mm256_maddubs_epi16(codes.lo, all)),
            _mm256_add_epi16(sums.hi, _mm256_maddubs_epi16(codes.hi, all))};
}
inline I32x16 add_sums(I32x16 total, Sums sums, const Head& head) {
    return {_mm256_add_epi32(total.lo, _mm256_madd_epi16(sums.lo, head.steps.lo)),
            _mm256_add_epi32(total.hi, _mm256_madd_epi16(sums.hi, head.steps.hi))};
}

#else

constexpr bool kEveryChunk = false;

using Sums = I32x16;

struct Head {
    I32x16 step, zero;

    Head(I32x16 step, I32x16 zero) : step(step), zero(zero) {}
};

inline Sums no_sums() {
    return all_lanes(0);
}
inline Sums start(I32x16&, const Head& head, int32_t row_sum) {
    return head.zero * all_lanes(-row_sum);
}
inline Sums add_quad(Sums sums, Bytes codes, int32_t four) {
    return dot<4>(sums, codes, four);
}
inline I32x16 add_sums(I32x16 total, Sums sums, const Head& head) {
    return total + sums * head.step;
}

#endif

// One group of one block: where its parts lie.
struct Group {
    const uint8_t* chunks;
    int64_t count;  // of chunks
    alignas(64) uint8_t steps[kBlock], zeros[kBlock];

    Group(const DualShape& shape, const uint8_t* at, int64_t group)
        : chunks(at + shape.head_bytes()), count(shape.group_chunks(group)) {
        const Bytes both = load_bytes(at);
        store_bytes(steps, field(both, 0, 15));
        store_bytes(zeros, field(both, 4, 15));
    }

    I32x16 step(int64_t tile) const { return load_u8(steps + tile * kTile) + all_lanes(1); }
    I32x16 zero(int64_t tile) const { return load_u8(zeros + tile * kTile); }
    Head head(int64_t tile) const { return {step(tile), zero(tile)}; }
    const uint8_t* end(const DualShape& shape) const { return chunks + count * shape.chunk_bytes(); }
};

inline const uint8_t* first_group(const DualLinear& a, int64_t block) {
    return a.packed + block * a.shape.block_bytes() + a.shape.scale_bytes();
}

// The only floats: (sum * scale of the output) * scale of the row.
inline void finish(const DualLinear& a, int64_t block, int64_t row, const I32x16* totals) {
    const float* scales = reinterpret_cast<const float*>(a.packed + block * a.shape.block_bytes());
    const F32x16 row_scale = broadcast(a.rows.scales[row]);
    for (int64_t t = 0; t < kTiles; ++t)
        write_outputs(a.end, row, block * kBlock + t * kTile,
                      to_float(totals[t]) * load(scales + t * kTile) * row_scale);
}

}  // namespace
}  // namespace headrace::HR_LEVEL
