// Rows by dot products of pairs of inputs, where there are no matrix tiles.
#pragma once

#include "bf16_linear/rows.h"
#include "headrace/simd_int.h"

namespace headrace::HR_LEVEL {
namespace {

template <class Weights>
inline int64_t most_chunks(const Shape&) {  // that are asked for at once
    return Weights::kSlice;
}
constexpr int64_t kPassRows = 96;  // rows per pass over a block: their inputs stay in the second-level cache

// What one instruction, or two, multiply of a pair of sixteen outputs: both inputs, or the first, then the
// second.
#if defined(HR_LEVEL_AVX512)

constexpr int kParts = 1;
using Part = __m512bh;

inline Part load_part(const bf16* pairs, int) {
    return (__m512bh)_mm512_loadu_si512(pairs);
}
inline F32x16 add_part(F32x16 sum, Part weights, const bf16* x, int) {
    int32_t pair;
    memcpy(&pair, x, sizeof pair);
    return {_mm512_dpbf16_ps(sum.v, weights, (__m512bh)_mm512_set1_epi32(pair))};
}

#else

constexpr int kParts = 2;
using Part = F32x16;

inline F32x16 add_part(F32x16 sum, Part weights, const float* x, int part) {
    return fma(weights, broadcast(x[part]), sum);
}

#if defined(HR_LEVEL_AVX2)
inline Part load_part(const bf16* pairs, int part) {
    const __m256i* p = reinterpret_cast<const __m256i*>(pairs);
    const __m256i lo = _mm256_loadu_si256(p), hi = _mm256_loadu_si256(p + 1);
    if (part == 0)
        return {_mm256_castsi256_ps(_mm256_slli_epi32(lo, 16)),
                _mm256_castsi256_ps(_mm256_slli_epi32(hi, 16))};
    const __m256i upper = _mm256_set1_epi32(static_cast<int>(0xffff0000));
    return {_mm256_castsi256_ps(_mm256_and_si256(lo, upper)),
            _mm256_castsi256_ps(_mm256_and_si256(hi, upper))};
}
#else
inline Part load_part(const bf16* pairs, int part) {
    F32x16 out;
    for (int64_t i = 0; i < kLanes; ++i) out.lane[i] = to_float(pairs[2 * i + part]);
    return out;
}
#endif

#endif

// Some chunks of a block, and where their inputs lie in the rows of a pass.
struct Slice {
    const bf16* weights;
    const RowItem* x;
    int64_t chunks;
    const char* ahead;  // what is fetched meanwhile,
    bool fetch;         // if nobody has read the weights before
};

// A slice's tiles from `t` on for kRows rows, sums of kAtOnce tiles in registers together; between slices
// they lie in `sums`, [row][64]. Each a function of its own: what one compiles to shall not depend on the
// others.
template <class Weights, int kRows, int kAtOnce>
[[gnu::noinline]] void add_slice(const Bf16Rows& a, const Slice& slice, int64_t t, int64_t row, float* sums) {
    const int64_t stride = a.stride;
    F32x16 sum[kRows][kAtOnce];
    HR_UNROLL
    for (int r = 0; r < kRows; ++r) {
        HR_UNROLL
        for (int u = 0; u < kAtOnce; ++u) sum[r][u] = load(sums + r * Shape::kBlock + (t + u) * Shape::kTile);
    }
    const bool fetch = slice.fetch && row == 0;
    for (int64_t c = 0; c < slice.chunks; ++c) {
        const bf16* tile = slice.weights + (c * Shape::kTiles + t) * Shape::kTileItems;
        // In the order of memory, which is not that of reading: the processor follows nothing else.
        const char* next = slice.ahead + (t * slice.chunks + c * kAtOnce) * kPairs * Weights::kLine;
        const RowItem* x = slice.x + c * a.chunk_items + row * stride;
        for (int64_t k = 0; k < kPairs; ++k) {
            HR_UNROLL
            for (int u = 0; u < kAtOnce; ++u) {
                const bf16* pairs = tile + u * Shape::kTileItems + k * 2 * Shape::kTile;
                if (fetch) prefetch(next + (k * kAtOnce + u) * Weights::kLine);
                HR_UNROLL
                for (int part = 0; part < kParts; ++part) {
                    const Part weights = load_part(pairs, part);
                    HR_UNROLL
                    for (int r = 0; r < kRows; ++r)
                        sum[r][u] = add_part(sum[r][u], weights, x + r * stride + 2 * k, part);
                }
            }
        }
    }
    HR_UNROLL
    for (int r = 0; r < kRows; ++r) {
        HR_UNROLL
        for (int u = 0; u < kAtOnce; ++u) store(sums + r * Shape::kBlock + (t + u) * Shape::kTile, sum[r][u]);
    }
}

// As many rows at a time as there are registers for. On AVX2 six would just fit, but GCC keeps one of their
// sums in memory, and waiting for that costs a third. All rows pass a tile before the next one.
template <class Weights>
void add_rows(const Bf16Rows& a, const Slice& slice, int64_t count, float* sums) {
    int64_t done = 0;
    int64_t stop = count;
    auto take = [&]<int kRows, int kAtOnce>() {
        const int64_t first = done;
        for (int64_t t = 0; t < Shape::kTiles; t += kAtOnce)
            for (done = first; done + kRows <= stop; done += kRows)
                add_slice<Weights, kRows, kAtOnce>(a, slice, t, done, sums + done * Shape::kBlock);
    };
#if defined(HR_LEVEL_AVX512)
    stop = count > 8 ? (count - 3) / 6 * 6 : 0;
    take.template operator()<6, 4>();
    stop = count;
    // The rest, three to eight of many rows, in one go: reading the tiles again for each row takes longer.
    take.template operator()<8, 2>();
    take.template operator()<7, 4>();
    take.template operator()<6, 4>();
    take.template operator()<5, 4>();
    take.template operator()<4, 4>();
    take.template operator()<3, 4>();
    take.template operator()<2, 4>();
    take.template operator()<1, 4>();
#elif defined(HR_LEVEL_AVX2)
    take.template operator()<4, 1>();
    take.template operator()<2, 2>();
    take.template operator()<1, 4>();
#else
    take.template operator()<1, 1>();
#endif
}

template <class Weights>
void pass_rows(const Bf16Rows& a, Weights& weights, int64_t block, int64_t first, int64_t count) {
    alignas(64) float sums[kPassRows * Shape::kBlock];
    memset(sums, 0, static_cast<size_t>(count * Shape::kBlock) * sizeof(float));
    const RowItem* x = static_cast<const RowItem*>(a.rows) + first * a.stride;
    const int64_t chunks = a.shape.chunks();
    for (int64_t c = 0; c < chunks; c += Weights::kSlice) {
        const int64_t n = chunks - c < Weights::kSlice ? chunks - c : Weights::kSlice;
        add_rows<Weights>(a, {weights.chunks(c, n), x + c * a.chunk_items, n, weights.ahead(c), first == 0},
                          count, sums);
    }
    for (int64_t r = 0; r < count; ++r)
        for (int64_t t = 0; t < Shape::kTiles; ++t)
            write_outputs(a.end, first + r, block * Shape::kBlock + t * Shape::kTile,
                          load(sums + r * Shape::kBlock + t * Shape::kTile));
}

template <class Weights>
void multiply_block(const Bf16Rows& a, Weights& weights, int64_t block) {
    for (int64_t row = 0; row < a.count; row += kPassRows)
        pass_rows(a, weights, block, row, a.count - row < kPassRows ? a.count - row : kPassRows);
}

}  // namespace
}  // namespace headrace::HR_LEVEL
