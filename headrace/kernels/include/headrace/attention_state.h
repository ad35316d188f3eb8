// What a row has gathered from some of its keys, and how two such states become one. Compiled once per level.
#pragma once

#include "headrace/simd_math.h"

namespace headrace::HR_LEVEL {

constexpr float kHidden = -__builtin_huge_valf();  // the score of a token that is not seen

// What a row has gathered in a segment, beside its values: the largest score, and the sum of
// exp(score - largest) in sixteen lanes.
struct Gathered {
    float most;
    F32x16 sum;
};

// A row's state as it lies in memory: out [H], the largest score, the sum of exp(score - largest).
inline int64_t part_floats(int64_t head_size) {
    return head_size + kLanes;
}

// Adds a state to a row's: both are sums of exp(score - most), and values in the same weights.
inline void add_state(float most, float sum, const float* out, int64_t head_size, float& whole_most,
                      float& whole_sum, float* whole) {
    if (most == kHidden) return;
    const float raised = most > whole_most ? most : whole_most;
    const F32x16 before = exp(broadcast(whole_most - raised)), now = exp(broadcast(most - raised));
    whole_most = raised;
    whole_sum = whole_sum * largest(before) + sum * largest(now);
    for (int64_t h = 0; h < head_size; h += kLanes)
        store(whole + h, fma(load(out + h), now, load(whole + h) * before));
}

}  // namespace headrace::HR_LEVEL
