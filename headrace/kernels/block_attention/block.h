// A strip of rows over one block: scores, weights, values. Compiled once per level.
//
// Sums over codes are of integers, exact in any order. What is rounded for a row, and in which order its
// floats are added, depends on the row and the block alone.
#pragma once

#include "block_attention/kernel.h"
#include "headrace/attention_state.h"
#include "headrace/dots.h"

namespace headrace::HR_LEVEL {
namespace {

#if defined(HR_LEVEL_AVX512)
constexpr int kStripRows = 4, kGroups = 2;
#else
constexpr int kStripRows = 2, kGroups = 1;  // each takes four of sixteen registers
#endif
constexpr int64_t kAhead = 2;
constexpr int64_t kQuads = 8;  // of a chain: see Dots
constexpr int64_t kMostTokens = 1024, kMostHead = 1024;
constexpr float kLeast = 0x1p-100f;

// One kv head of a block. The one that is read kAhead blocks later is fetched line by line while this one is
// multiplied: all of it at once would wait for the memory, and so would whoever comes behind it.
struct Head {
    const uint8_t *keys, *values;
    const bf16 *key_scales, *key_least, *value_scales, *value_least;
    int64_t ahead = 0;  // bytes from here to the same place of what is fetched
};

// count scales and as many least values, of what is read kAhead blocks later.
inline void fetch_numbers(const bf16* scales, int64_t count, int64_t ahead) {
    const auto* next = reinterpret_cast<const uint8_t*>(scales) + ahead;
    for (int64_t i = 0; i < 2 * count * static_cast<int64_t>(sizeof(bf16)); i += 64)
        prefetch_second(next + i);
}

inline Head head_at(const BlockStore& s, const uint8_t* page, int64_t block, int64_t kv_head) {
    const uint8_t* keys = page + block * s.stride + s.at + kv_head * s.head_bytes();
    const auto* key_scales = reinterpret_cast<const bf16*>(keys + s.code_bytes());
    const bf16* key_least = key_scales + s.key_groups() * s.head_size;
    const auto* values = reinterpret_cast<const uint8_t*>(key_least + s.key_groups() * s.head_size);
    const auto* value_scales = reinterpret_cast<const bf16*>(values + s.code_bytes());
    return {keys,      values,       key_scales,
            key_least, value_scales, value_scales + s.value_groups() * s.block_tokens};
}

// What a row multiplies codes with, as bytes: `factor` times them, and `base` once.
struct alignas(64) Rounded {  // else many of its small loads and stores cross lines
    int8_t bytes[kMostTokens > kMostHead ? kMostTokens : kMostHead];
    float factor, base;
};

// For each row of x [kRows][count], and each of kScales scales and least values [kScales][count],
// to out [kScales][kRows]: bytes * factor is x * scale, rounded to 1/127 of the largest; base is the sum of
// x * least, and what rounding would cost with codes that are all in the middle: so codes count by how far
// they are from there.
template <int kBits, int kRows, int kScales>
inline void round_rows(const float* x, const bf16* scale, const bf16* least, int64_t count, Rounded* out) {
    constexpr int kAll = kScales * kRows;
    const F32x16 middle = broadcast(((1 << kBits) - 1) / 2.0f);
    F32x16 most[kAll], base[kAll], steps[kAll];
    I32x16 bytes[kAll];
    HR_UNROLL for (int a = 0; a < kAll; ++a) most[a] = base[a] = broadcast(0), bytes[a] = all_lanes(0);
    for (int64_t i = 0; i < count; i += kLanes) {
        F32x16 by[kScales], at_middle[kScales];
        HR_UNROLL for (int g = 0; g < kScales; ++g) {
            by[g] = load(scale + g * count + i);
            at_middle[g] = fma(by[g], middle, load(least + g * count + i));
        }
        HR_UNROLL for (int r = 0; r < kRows; ++r) {
            const F32x16 each = load(x + r * count + i), size = magnitude(each);
            HR_UNROLL for (int g = 0; g < kScales; ++g) {
                const int a = g * kRows + r;
                most[a] = max(size * by[g], most[a]);  // no scale is below 0
                base[a] = fma(each, at_middle[g], base[a]);
            }
        }
    }
    HR_UNROLL for (int a = 0; a < kAll; ++a) {
        const float top = largest(most[a]);
        out[a].factor = top * (1.0f / 127);
        steps[a] = broadcast(top >= kLeast ? 127 / top : 0.0f);
    }
    for (int64_t i = 0; i < count; i += kLanes) {
        F32x16 by[kScales];
        HR_UNROLL for (int g = 0; g < kScales; ++g) by[g] = load(scale + g * count + i);
        HR_UNROLL for (int r = 0; r < kRows; ++r) {
            const F32x16 each = load(x + r * count + i);
            HR_UNROLL for (int g = 0; g < kScales; ++g) {
                const int a = g * kRows + r;
                const I32x16 rounded = nearest(each * by[g] * steps[a]);
                bytes[a] = bytes[a] + rounded;
                store_i8(out[a].bytes + i, rounded);
            }
        }
    }
    HR_UNROLL for (int a = 0; a < kAll; ++a) out[a].base =
        sum(base[a] - to_float(bytes[a]) * broadcast(out[a].factor) * middle);
}

// multiply(group, what its rows multiply codes with) for every group; a few are rounded together.
template <int kBits, int kRows, class Multiply>
inline void for_each_group(int64_t groups, const float* x, const bf16* scale, const bf16* least,
                           int64_t count, Rounded* rows, const Multiply& multiply) {
    int64_t g = 0;
    for (; g + kGroups <= groups; g += kGroups) {
        round_rows<kBits, kRows, kGroups>(x, scale + g * count, least + g * count, count, rows);
        for (int i = 0; i < kGroups; ++i) multiply(g + i, rows + i * kRows);
    }
    for (; g < groups; ++g) {
        round_rows<kBits, kRows, 1>(x, scale + g * count, least + g * count, count, rows);
        multiply(g, rows);
    }
}

// to[r] = factor * sum of bytes * codes, + base: sixteen outer codes over `inner` ones, for kRows rows.
template <int kBits, int kRows>
inline void dot_tiles(const uint8_t* codes, int64_t inner, int64_t ahead, const Rounded* rows, F32x16* to) {
    constexpr int kPer = 8 / kBits;
    Dots<kBits> dots[kRows];
    HR_UNROLL for (int r = 0; r < kRows; ++r) dots[r].sum = all_lanes(0);
    for (int64_t quad = 0; quad < inner / 4; quad += kQuads) {
        HR_UNROLL for (int k = 0; k < kQuads; ++k) {
            const uint8_t* at = codes + (quad + k) / kPer * 64;
            if (k % kPer == 0) prefetch_second(at + ahead);
            const Bytes packed = load_bytes(at);
            const Factor<kBits> x = factor<kBits>(field(packed, k % kPer * kBits, (1 << kBits) - 1));
            HR_UNROLL for (int r = 0; r < kRows; ++r) dots[r].add(k, x,
                                                                  load_four(rows[r].bytes + 4 * (quad + k)));
        }
    }
    HR_UNROLL for (int r = 0; r < kRows; ++r) to[r] =
        fma(to_float(dots[r].sum), broadcast(rows[r].factor), broadcast(rows[r].base));
}

// scores [kRows][block_tokens] of q [kRows][H].
template <int kBits, int kRows>
inline void score(const BlockStore& s, const Head& head, const float* q, Rounded* rows, float* scores) {
    const int64_t H = s.head_size, tile = H * kLanes * kBits / 8;
    const auto multiply = [&](int64_t g, const Rounded* rounded) {
        for (int64_t t = g * s.group; t < (g + 1) * s.group; t += kLanes) {
            F32x16 sixteen[kRows];
            dot_tiles<kBits, kRows>(head.keys + t / kLanes * tile, H, head.ahead, rounded, sixteen);
            for (int r = 0; r < kRows; ++r) store(scores + r * s.block_tokens + t, sixteen[r]);
        }
    };
    for_each_group<kBits, kRows>(s.key_groups(), q, head.key_scales, head.key_least, H, rows, multiply);
    fetch_numbers(head.key_scales, s.key_groups() * H, head.ahead);
}

// out [kRows][H] += weights [kRows][block_tokens] * values.
template <int kBits, int kRows>
inline void add_values(const BlockStore& s, const Head& head, const float* weights, Rounded* rows,
                       float* out) {
    const int64_t L = s.block_tokens, tile = L * kLanes * kBits / 8;
    const auto multiply = [&](int64_t g, const Rounded* rounded) {
        for (int64_t h = g * s.channels; h < (g + 1) * s.channels; h += kLanes) {
            F32x16 sixteen[kRows];
            dot_tiles<kBits, kRows>(head.values + h / kLanes * tile, L, head.ahead, rounded, sixteen);
            for (int r = 0; r < kRows; ++r) {
                float* to = out + r * s.head_size + h;
                store(to, load(to) + sixteen[r]);
            }
        }
    };
    for_each_group<kBits, kRows>(s.value_groups(), weights, head.value_scales, head.value_least, L, rows,
                                 multiply);
    fetch_numbers(head.value_scales, s.value_groups() * L, head.ahead);
}

// Tokens from `seen` on and before `first` get minus infinity.
inline void hide(int64_t seen, int64_t first, int64_t count, float* scores) {
    for (int64_t t = seen > 0 ? seen : 0; t < first && t < count; ++t) scores[t] = kHidden;
}

// Scores [kRows][count] to weights: raises each row's largest score, and rescales what it has. False: no row
// sees any of them.
template <int kRows>
inline bool weigh(float* scores, int64_t count, int64_t head_size, Gathered* rows, float* out) {
    F32x16 top[kRows], base[kRows];
    HR_UNROLL for (int r = 0; r < kRows; ++r) top[r] = broadcast(kHidden);
    for (int64_t t = 0; t < count; t += kLanes)
        HR_UNROLL for (int r = 0; r < kRows; ++r) top[r] = max(load(scores + r * count + t), top[r]);
    bool seen = false;
    for (int r = 0; r < kRows; ++r) {
        const float found = largest(top[r]), before = rows[r].most, raised = found > before ? found : before;
        seen |= found != kHidden;
        base[r] = broadcast(raised == kHidden ? 0.0f : raised);  // then all weights are 0
        if (raised == before) continue;
        const F32x16 factor = exp(broadcast(before) - base[r]);
        float* to = out + r * head_size;
        for (int64_t h = 0; h < head_size; h += kLanes) store(to + h, load(to + h) * factor);
        rows[r] = {raised, rows[r].sum * factor};
    }
    if (!seen) return false;
    F32x16 sums[kRows];
    HR_UNROLL for (int r = 0; r < kRows; ++r) sums[r] = rows[r].sum;
    for (int64_t t = 0; t < count; t += kLanes) {
        HR_UNROLL for (int r = 0; r < kRows; ++r) {
            const F32x16 weight = exp(load(scores + r * count + t) - base[r]);
            sums[r] = sums[r] + weight;
            store(scores + r * count + t, weight);
        }
    }
    HR_UNROLL for (int r = 0; r < kRows; ++r) rows[r].sum = sums[r];
    return true;
}

}  // namespace
}  // namespace headrace::HR_LEVEL
