// A strip: up to four rows whose sums registers hold together. Scores, weights and values of a strip over
// blocks. Compiled once per level.
//
// A row's sums run over dimensions (scores) and over tokens (values) in order, one multiply-add each,
// whatever the strip and however many blocks go together: all levels and all strips give the same bits.
#pragma once

#include "paged_attention/block.h"

namespace headrace::HR_LEVEL {
namespace {

constexpr int64_t kStripRows = 4;
#if defined(HR_LEVEL_AVX512)
constexpr int kSums = 16, kValueSums = 16;  // of 32 registers
#else
constexpr int kSums = 4, kValueSums = 4;  // pairs of 16 registers: eight sums hide a multiply-add's latency
#endif
template <int kRows>
constexpr int kScoreBlocks = kSums / kRows < kGroupBlocks ? kSums / kRows : kGroupBlocks;
template <int kRows>
constexpr int kValueVectors = kValueSums / kRows < 4 ? kValueSums / kRows : 4;

struct Strip {
    int64_t row, rows;
    int64_t low, high;  // positions of its first and last row
    int64_t from, to;   // blocks of the chunk that one of its rows may see
};

// function.template operator()<rows of the strip>()
template <class Function>
inline void with_rows(const Strip& strip, const Function& function) {
    switch (strip.rows) {
        case 4:
            return function.template operator()<4>();
        case 2:
            return function.template operator()<2>();
        default:
            return function.template operator()<1>();
    }
}

// kScoreBlocks blocks from b on; one that is not there is computed as the last, and not kept.
template <int kRows, bool kFetch, class T>
inline void score_blocks(const Blocks<T>& blocks, int64_t b, int64_t head_size, const float* q,
                         float* scores) {
    constexpr int kBlocks = kScoreBlocks<kRows>;
    const int64_t per_line = keys_per_line<T>(blocks.stride);
    const T *keys[kBlocks], *ahead[kBlocks];
#pragma GCC unroll 8
    for (int i = 0; i < kBlocks; ++i) {
        const int64_t last = blocks.count - 1;
        keys[i] = blocks.at[b + i < last ? b + i : last].keys;
        ahead[i] = blocks.ahead(b + i).keys;
        if constexpr (kFetch && kHasScales<T>) prefetch_second(blocks.ahead(b + i).key_scales);
    }
    F32x16 sums[kRows][kBlocks];
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
        for (int i = 0; i < kBlocks; ++i) sums[r][i] = broadcast(0);
    for (int64_t first = 0; first < head_size; first += kFetched) {
        if constexpr (kFetch)
#pragma GCC unroll 8
            for (int i = 0; i < kBlocks; ++i)
                fetch_keys(ahead[i] + first * blocks.stride, blocks.stride, per_line);
#pragma GCC unroll 4
        for (int64_t h = first; h < first + kFetched; ++h) {
            F32x16 key[kBlocks];
#pragma GCC unroll 8
            for (int i = 0; i < kBlocks; ++i) key[i] = load(keys[i] + h * blocks.stride);
#pragma GCC unroll 8
            for (int r = 0; r < kRows; ++r) {
                const F32x16 x = broadcast(q[r * head_size + h]);
#pragma GCC unroll 8
                for (int i = 0; i < kBlocks; ++i) sums[r][i] = fma(key[i], x, sums[r][i]);
            }
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < kBlocks; ++i) {
        if (b + i >= blocks.count) break;
        const float* scales = blocks.at[b + i].key_scales;
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r)
            store(scores + r * kChunkTokens + i * kBlockTokens,
                  scales ? sums[r][i] * load(scales) : sums[r][i]);
    }
}

// q [rows][H], scores [rows][kChunkTokens], both of the strip's first row; scores of blocks [from, to).
template <bool kFetch, class T>
inline void score(const Strip& strip, const Blocks<T>& blocks, int64_t from, int64_t to, int64_t head_size,
                  const float* q, float* scores) {
    with_rows(strip, [&]<int kRows>() {
        const Blocks<T> seen{blocks.at, to, blocks.stride, blocks.last};
        for (int64_t b = from; b < to; b += kScoreBlocks<kRows>)
            score_blocks<kRows, kFetch>(seen, b, head_size, q, scores + b * kBlockTokens);
    });
}

// Tokens that the row at `position` may not see get minus infinity.
template <class T>
inline void hide(const Block<T>& block, int64_t position, int64_t window, int64_t sink, float* scores) {
    // Offsets <= low, but for those of the sink, and > high are hidden.
    int64_t low = window ? position - window - block.position : -1;
    const int64_t own = position - block.position, seen = sink - block.position;
    if (low >= 0 && seen > 0) {
        for (int64_t i = seen; i <= low && i < kBlockTokens; ++i) scores[i] = kHidden;
        low = -1;
    }
    const int64_t high = own < block.count ? own : block.count - 1;
    if (low < 0 && high >= kBlockTokens - 1) return;
    static constexpr float kOffsets[kBlockTokens] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    const F32x16 offset = load(kOffsets), hidden = broadcast(kHidden);
    const auto at = [](int64_t x) { return broadcast(static_cast<float>(x)); };
    F32x16 score =
        where_at_least(at(high), offset, load(scores)) + where_at_least(offset, at(high + 1), hidden);
    score = where_at_least(offset, at(low + 1), score) + where_at_least(at(low), offset, hidden);
    store(scores, score);
}

// Scores of blocks [from, to) to weights: raises the row's largest score, rescales what it has, and leaves
// exp(score - largest), times the value's scale if it has one.
template <class T>
inline void weigh(const Block<T>* blocks, int64_t from, int64_t to, int64_t head_size, float* scores,
                  Gathered& row, float* out) {
    F32x16 top = broadcast(kHidden);
    for (int64_t b = from; b < to; ++b) top = max(load(scores + b * kBlockTokens), top);
    const float most = largest(top), raised = most > row.most ? most : row.most;
    if (raised == kHidden) {
        for (int64_t i = from * kBlockTokens; i < to * kBlockTokens; ++i) scores[i] = 0;
        return;
    }
    const F32x16 base = broadcast(raised);
    if (raised != row.most) {
        const F32x16 factor = exp(broadcast(row.most) - base);
        row.sum = row.sum * factor;
        for (int64_t h = 0; h < head_size; h += kLanes) store(out + h, load(out + h) * factor);
        row.most = raised;
    }
    F32x16 total = row.sum;  // in a register: for all the compiler knows, a store to `scores` changes `row`
    for (int64_t b = from; b < to; ++b) {
        const F32x16 weight = exp(load(scores + b * kBlockTokens) - base);
        total = total + weight;
        const float* scales = blocks[b].value_scales;
        store(scores + b * kBlockTokens, scales ? weight * load(scales) : weight);
    }
    row.sum = total;
}

// Dimensions [h, h + 16 kVectors) of the values of blocks [from, to).
template <int kRows, int kVectors, bool kFetch, class T>
inline void add_vectors(const Blocks<T>& blocks, int64_t from, int64_t to, int64_t head_size,
                        const float* weights, float* out, int64_t h) {
    F32x16 sums[kRows][kVectors];
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v) sums[r][v] = load(out + r * head_size + h + v * kLanes);
    const bool fetch = kFetch && h % kPerLine<T> == 0;
    for (int64_t b = from; b < to; ++b) {
        const T *values = blocks.at[b].values + h, *ahead = blocks.ahead(b).values + h;
        if constexpr (kFetch && kHasScales<T>) prefetch_second(blocks.ahead(b).value_scales);
        const float *weight_of = weights + b * kBlockTokens, *end = weight_of + blocks.at[b].count;
        for (; weight_of < end; ++weight_of, values += head_size, ahead += head_size) {
            if (fetch)
#pragma GCC unroll 8
                for (int64_t at = 0; at < kVectors * kLanes; at += kPerLine<T>) prefetch_second(ahead + at);
            F32x16 value[kVectors];
#pragma GCC unroll 8
            for (int v = 0; v < kVectors; ++v) value[v] = load(values + v * kLanes);
#pragma GCC unroll 8
            for (int r = 0; r < kRows; ++r) {
                const F32x16 weight = broadcast(weight_of[r * kChunkTokens]);
#pragma GCC unroll 8
                for (int v = 0; v < kVectors; ++v) sums[r][v] = fma(weight, value[v], sums[r][v]);
            }
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v) store(out + r * head_size + h + v * kLanes, sums[r][v]);
}

// out [rows][H] += weights [rows][kChunkTokens] * values, of blocks [from, to).
template <bool kFetch, class T>
inline void add_values(const Strip& strip, const Blocks<T>& blocks, int64_t from, int64_t to,
                       int64_t head_size, const float* weights, float* out) {
    with_rows(strip, [&]<int kRows>() {
        constexpr int kVectors = kValueVectors<kRows>;
        int64_t h = 0;
        for (; h + kVectors * kLanes <= head_size; h += kVectors * kLanes)
            add_vectors<kRows, kVectors, kFetch>(blocks, from, to, head_size, weights, out, h);
        for (; h < head_size; h += kLanes)
            add_vectors<kRows, 1, kFetch>(blocks, from, to, head_size, weights, out, h);
    });
}

}  // namespace
}  // namespace headrace::HR_LEVEL
