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
constexpr int kStripRows = 4;
#else
constexpr int kStripRows = 2;  // each takes four of sixteen registers
#endif
constexpr int64_t kQuads = 8;  // of a chain: see Dots
constexpr int64_t kMostTokens = 1024, kMostHead = 1024;
constexpr float kLeast = 0x1p-100f;

// One kv head of a block. What is read next is fetched line by line while this one is multiplied: all of it
// at once would wait for the memory, and so would whoever comes behind it.
struct Head {
    const uint8_t *keys, *values;
    const bf16 *key_scales, *key_least, *value_scales, *value_least;
    int64_t ahead = 0;  // bytes from here to the same place of what is read next
};

// count scales and as many least values, of what is read next.
inline void fetch_numbers(const bf16* scales, int64_t count, int64_t ahead) {
    const auto* next = reinterpret_cast<const uint8_t*>(scales) + ahead;
    for (int64_t i = 0; i < 2 * count * static_cast<int64_t>(sizeof(bf16)); i += 64) prefetch(next + i);
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
struct Rounded {
    int8_t bytes[kMostTokens > kMostHead ? kMostTokens : kMostHead];
    float factor, base;
};

// bytes * factor is x * scale, rounded to 1/127 of the largest; base is the sum of x * least, and what
// rounding would cost with codes that are all in the middle: so codes count by how far they are from there.
template <int kBits>
inline void round_row(const float* x, const bf16* scale, const bf16* least, int64_t count, Rounded& out) {
    constexpr float kMiddle = ((1 << kBits) - 1) / 2.0f;
    F32x16 most = broadcast(0), base = broadcast(0), lost = broadcast(0);
    for (int64_t i = 0; i < count; i += kLanes) {
        most = max(magnitude(load(x + i) * load(scale + i)), most);
        base = fma(load(x + i), load(least + i), base);
    }
    const float top = largest(most);
    out.factor = top / 127;
    const F32x16 steps = broadcast(top >= kLeast ? 127 / top : 0.0f);
    for (int64_t i = 0; i < count; i += kLanes) {
        const F32x16 exact = load(x + i) * load(scale + i) * steps;
        const I32x16 rounded = nearest(exact);
        lost = lost + (exact - to_float(rounded));
        store_i8(out.bytes + i, rounded);
    }
    out.base = sum(base) + kMiddle * out.factor * sum(lost);
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
            if (k % kPer == 0) prefetch(at + ahead);
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
    for (int64_t g = 0; g < s.key_groups(); ++g) {
        for (int r = 0; r < kRows; ++r)
            round_row<kBits>(q + r * H, head.key_scales + g * H, head.key_least + g * H, H, rows[r]);
        for (int64_t t = g * s.group; t < (g + 1) * s.group; t += kLanes) {
            F32x16 sixteen[kRows];
            dot_tiles<kBits, kRows>(head.keys + t / kLanes * tile, H, head.ahead, rows, sixteen);
            for (int r = 0; r < kRows; ++r) store(scores + r * s.block_tokens + t, sixteen[r]);
        }
    }
    fetch_numbers(head.key_scales, s.key_groups() * H, head.ahead);
}

// out [kRows][H] += weights [kRows][block_tokens] * values.
template <int kBits, int kRows>
inline void add_values(const BlockStore& s, const Head& head, const float* weights, Rounded* rows,
                       float* out) {
    const int64_t L = s.block_tokens, tile = L * kLanes * kBits / 8;
    for (int64_t g = 0; g < s.value_groups(); ++g) {
        for (int r = 0; r < kRows; ++r)
            round_row<kBits>(weights + r * L, head.value_scales + g * L, head.value_least + g * L, L,
                             rows[r]);
        for (int64_t h = g * s.channels; h < (g + 1) * s.channels; h += kLanes) {
            F32x16 sixteen[kRows];
            dot_tiles<kBits, kRows>(head.values + h / kLanes * tile, L, head.ahead, rows, sixteen);
            for (int r = 0; r < kRows; ++r) {
                float* to = out + r * s.head_size + h;
                store(to, load(to) + sixteen[r]);
            }
        }
    }
    fetch_numbers(head.value_scales, s.value_groups() * L, head.ahead);
}

// Tokens from `seen` on and before `first` get minus infinity.
inline void hide(int64_t seen, int64_t first, int64_t count, float* scores) {
    for (int64_t t = seen > 0 ? seen : 0; t < first && t < count; ++t) scores[t] = kHidden;
}

// Scores to weights: raises the row's largest score, rescales what it has. False: the row sees none of them.
inline bool weigh(float* scores, int64_t count, int64_t head_size, float& most, float& total, float* out) {
    F32x16 top = broadcast(kHidden);
    for (int64_t t = 0; t < count; t += kLanes) top = max(load(scores + t), top);
    const float found = largest(top), raised = found > most ? found : most;
    if (found == kHidden) {
        for (int64_t t = 0; t < count; t += kLanes) store(scores + t, broadcast(0));
        return false;
    }
    const F32x16 base = broadcast(raised), before = exp(broadcast(most) - base);
    if (raised != most) {
        for (int64_t h = 0; h < head_size; h += kLanes) store(out + h, load(out + h) * before);
        total *= largest(before);
        most = raised;
    }
    F32x16 added = broadcast(0);
    for (int64_t t = 0; t < count; t += kLanes) {
        const F32x16 weight = exp(load(scores + t) - base);
        added = added + weight;
        store(scores + t, weight);
    }
    total += sum(added);
    return true;
}

}  // namespace
}  // namespace headrace::HR_LEVEL
