// A row of logits in blocks of 64: the largest of each, weights, and what is forbidden. Compiled once per
// level.
//
// Most blocks need no second look: a filter passes over those whose largest logit is out of question.
#pragma once

#include <math.h>

#include "draw/kernel.h"
#include "headrace/parallel.h"
#include "headrace/simd_math.h"

namespace headrace::HR_LEVEL {
namespace {

constexpr int64_t kBlock = 64;
constexpr int64_t kStretch = 64;       // blocks: 16 KB of logits, which stay in the nearest cache
constexpr float kWeightless = -30.0f;  // e^this is less than half a unit

struct Row {
    float* x;
    int64_t count;
    float* most;       // [blocks] the largest logit; NaN where one is
    int64_t* weights;  // [blocks]

    int64_t blocks() const { return (count + kBlock - 1) / kBlock; }
    int64_t length(int64_t block) const {
        const int64_t rest = count - block * kBlock;
        return rest < kBlock ? rest : kBlock;
    }
    // The 64 logits of a block; the last one is filled up with forbidden ones, in `room`.
    const float* read(int64_t block, float* room) const {
        const float* from = x + block * kBlock;
        const int64_t n = length(block);
        if (n == kBlock) return from;
        memcpy(room, from, static_cast<size_t>(n) * sizeof(float));
        for (int64_t i = n; i < kBlock; ++i) room[i] = -INFINITY;
        return room;
    }
};

// function(block) for every block; each costs about `cost` elementary operations per logit.
template <class Function>
void for_each_block(const Row& row, int64_t cost, const Function& function) {
    for_each_row(row.blocks(), kBlock * cost, function);
}

void find_largest_of(const Row& row, int64_t first, int64_t last) {
    float room[kBlock];
    F32x16 numbers = broadcast(1);
    for (int64_t block = first; block < last; ++block) {
        const float* x = row.read(block, room);
        F32x16 part[4];
        for (int64_t k = 0; k < 4; ++k) {
            part[k] = load(x + k * kLanes);
            numbers = where_at_least(part[k], part[k], numbers);  // a NaN is not at least itself
        }
        row.most[block] = largest(max(max(part[0], part[1]), max(part[2], part[3])));
    }
    if (sum(numbers) == kLanes) return;
    for (int64_t block = first; block < last; ++block)
        for (int64_t i = 0; i < row.length(block); ++i)
            if (row.x[block * kBlock + i] != row.x[block * kBlock + i]) row.most[block] = NAN;
}

// Fills row.most. Returns the largest logit of all, NaN if one is.
float find_largest(const Row& row) {
    const int64_t blocks = row.blocks(), stretches = (blocks + kStretch - 1) / kStretch;
    for_each_row(stretches, kStretch * kBlock, [&](int64_t stretch) {
        const int64_t first = stretch * kStretch, last = first + kStretch;
        find_largest_of(row, first, last < blocks ? last : blocks);
    });
    float largest = -INFINITY;
    for (int64_t block = 0; block < blocks; ++block) {
        const float most = row.most[block];
        if (most != most) return most;
        largest = most > largest ? most : largest;
    }
    return largest;
}

// A share in [0, 1] in units of 2^-40, rounded: added to 2^52, a number's lowest bit is worth one. A loop
// over these is one that compilers vectorise.
inline int64_t units(float share) {
    const double shifted = static_cast<double>(share) * 0x1p40 + 0x1p52;
    int64_t bits;
    memcpy(&bits, &shifted, sizeof bits);
    return bits - 0x4330000000000000;
}

// e^(x - largest) of some logits, whole vectors of them, in units.
template <int64_t kCount>
void weigh(const float* x, float largest, int64_t* weights) {
    float shares[kCount];
    for (int64_t i = 0; i < kCount; i += kLanes) store(shares + i, exp(load(x + i) - broadcast(largest)));
    for (int64_t i = 0; i < kCount; ++i) weights[i] = units(shares[i]);
}

// Fills row.weights; row.most is filled, and finite where it counts. Returns the weight of all.
int64_t weigh_blocks(const Row& row, float largest) {
    for_each_block(row, 8, [&](int64_t block) {
        int64_t total = 0;
        if (row.most[block] - largest > kWeightless) {
            float room[kBlock];
            int64_t weights[kBlock];
            weigh<kBlock>(row.read(block, room), largest, weights);
            for (int64_t weight : weights) total += weight;
        }
        row.weights[block] = total;
    });
    int64_t total = 0;
    for (int64_t block = 0; block < row.blocks(); ++block) total += row.weights[block];
    return total;
}

// Forbids what is below the threshold; a NaN is not. row.most is filled.
void forbid_below(const Row& row, float threshold) {
    const F32x16 least = broadcast(threshold), forbidden = broadcast(-INFINITY);
    for_each_block(row, 1, [&](int64_t block) {
        float* x = row.x + block * kBlock;
        const int64_t n = row.length(block);
        if (row.most[block] == -INFINITY) return;
        int64_t i = 0;
        for (; i + kLanes <= n; i += kLanes) {
            const F32x16 v = row.most[block] < threshold ? forbidden : load(x + i);
            store(x + i, where_less(v, least, forbidden, v));
        }
        for (; i < n; ++i) x[i] = x[i] < threshold ? -INFINITY : x[i];
    });
}

// Of the tokens with exactly this logit, forbids all but the first few.
void forbid_after(const Row& row, float value, int64_t stay) {
    for (int64_t block = 0; block < row.blocks(); ++block) {
        if (!(row.most[block] >= value)) continue;
        for (int64_t i = block * kBlock; i < block * kBlock + row.length(block); ++i)
            if (row.x[i] == value && --stay < 0) row.x[i] = -INFINITY;
    }
}

}  // namespace
}  // namespace headrace::HR_LEVEL
