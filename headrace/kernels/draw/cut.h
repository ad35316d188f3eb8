// Where the largest of many weighted numbers reach a weight, without sorting them. Compiled once per level.
#pragma once

#include <stdint.h>
#include <string.h>

#include "headrace/level.h"

namespace headrace::HR_LEVEL {
namespace {

// Floats as integers in the same order; both zeros are one number, every NaN is above all numbers.
inline uint32_t key_of(float x) {
    if (x != x) return UINT32_MAX;
    x += 0.0f;  // -0 becomes +0
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

inline float value_of(uint32_t key) {
    const uint32_t bits = key & 0x80000000u ? key & 0x7fffffffu : ~key;
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;  // UINT32_MAX: a NaN
}

struct Weighted {
    uint32_t* keys;
    int64_t* weights;  // equal keys weigh the same; null: each weighs 1
    int64_t count;

    int64_t weight(int64_t i) const { return weights ? weights[i] : 1; }
};

struct Cut {
    uint32_t key;    // the largest with: all keys of at least this weigh `target` or more
    int64_t above;   // what the keys beyond it weigh: less than the target
    int64_t count;   // how many keys are equal to it
    int64_t weight;  // of each of these
};

// Histograms of keys, each over the one bucket of the last in which the target is reached: 2048 buckets from
// the least key there to the greatest, so three rounds at most. `all` weighs target or more, target > 0; it
// is used up.
Cut cut(Weighted all, int64_t target) {
    constexpr int kBits = 11;
    int64_t above = 0;
    for (;;) {
        uint32_t low = UINT32_MAX, high = 0;
        for (int64_t i = 0; i < all.count; ++i) {
            low = all.keys[i] < low ? all.keys[i] : low;
            high = all.keys[i] > high ? all.keys[i] : high;
        }
        if (low == high) return {low, above, all.count, all.weight(0)};
        const int width = 32 - __builtin_clz(high - low), shift = width > kBits ? width - kBits : 0;
        int64_t buckets[1 << kBits] = {};
        for (int64_t i = 0; i < all.count; ++i) buckets[(all.keys[i] - low) >> shift] += all.weight(i);
        uint32_t reached = (high - low) >> shift;
        while (above + buckets[reached] < target) above += buckets[reached--];
        int64_t kept = 0;
        for (int64_t i = 0; i < all.count; ++i) {
            if ((all.keys[i] - low) >> shift != reached) continue;
            all.keys[kept] = all.keys[i];
            if (all.weights) all.weights[kept] = all.weights[i];
            ++kept;
        }
        all.count = kept;
    }
}

}  // namespace
}  // namespace headrace::HR_LEVEL
