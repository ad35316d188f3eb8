// draw for processors. Compiled once per level.
//
// Bounds, per token of the vocabulary: each filter reads it once to find the largest of its block, and once
// more to forbid; a weight costs an exponential.
#include <float.h>

#include "draw/cut.h"
#include "draw/row.h"

namespace headrace::HR_LEVEL {
namespace {

// The row with room for what is found out about it, and for candidates.
struct Work {
    Row row;
    Weighted candidates;
};

Work work_on(const Logits& a) {
    const int64_t blocks = (a.count + kBlock - 1) / kBlock;
    char* at = static_cast<char*>(scratch(Scratch::call, (blocks + a.count) * 12));
    const auto take = [&](int64_t bytes) {
        char* taken = at;
        at += bytes;
        return taken;
    };
    int64_t* block_weights = reinterpret_cast<int64_t*>(take(blocks * 8));
    int64_t* weights = reinterpret_cast<int64_t*>(take(a.count * 8));
    float* most = reinterpret_cast<float*>(take(blocks * 4));
    return {{a.x, a.count, most, block_weights}, {reinterpret_cast<uint32_t*>(at), weights, 0}};
}

// The keys of all logits that are at least `least`, NaN among them.
Weighted at_least(const Work& work, float least) {
    const Row& row = work.row;
    uint32_t* keys = work.candidates.keys;
    int64_t count = 0;
    for (int64_t block = 0; block < row.blocks(); ++block) {
        if (row.most[block] < least) continue;
        for (int64_t i = block * kBlock; i < block * kBlock + row.length(block); ++i) {
            keys[count] = key_of(row.x[i]);
            count += !(row.x[i] < least);
        }
    }
    return {keys, nullptr, count};
}

// The same with their weights; there is no NaN.
Weighted weighed_at_least(const Work& work, float least, float largest) {
    const Row& row = work.row;
    Weighted found = work.candidates;
    for (int64_t block = 0; block < row.blocks(); ++block) {
        if (row.most[block] < least) continue;
        float room[kBlock];
        const float* x = row.read(block, room);
        for (int64_t first = 0; first < kBlock; first += kLanes) {
            uint32_t left = bits_at_least(load(x + first), broadcast(least));
            if (!left) continue;
            int64_t weights[kLanes];
            weigh<kLanes>(x + first, largest, weights);
            for (; left; left &= left - 1) {
                const int lane = __builtin_ctz(left);
                found.keys[found.count] = key_of(x[first + lane]);
                found.weights[found.count++] = weights[lane];
            }
        }
    }
    return found;
}

// Block by block, k of the largest logits are at least the k-th largest of the blocks' largest: what is less
// is out of question.
void top_k(const Logits& a, int64_t k) {
    if (k >= a.count) return;
    const Work work = work_on(a);
    const Row& row = work.row;
    find_largest(row);
    float least = -FLT_MAX;
    if (k <= row.blocks()) {
        uint32_t* keys = work.candidates.keys;
        for (int64_t block = 0; block < row.blocks(); ++block) keys[block] = key_of(row.most[block]);
        const float bound = value_of(cut({keys, nullptr, row.blocks()}, k).key);
        if (bound != bound) return;  // as many NaN
        least = bound > least ? bound : least;
    }
    const Weighted candidates = at_least(work, least);
    if (candidates.count < k) return;  // all others are forbidden already
    forbid_below(row, value_of(cut(candidates, k).key));
}

void top_p(const Logits& a, double p) {
    const Work work = work_on(a);
    const Row& row = work.row;
    const float largest = find_largest(row);
    if (!(largest - largest == 0)) return;  // not finite
    const int64_t total = weigh_blocks(row, largest);
    int64_t target = static_cast<int64_t>(__builtin_ceil(p * static_cast<double>(total)));
    target = target < 1 ? 1 : target > total ? total : target;
    // All tokens that weigh no more than `light` are together no more than what is left out: the target is
    // reached without them. The margins cover the roundings.
    const int64_t light = (total - target) / a.count;
    const float lightest =
        light ? static_cast<float>(log(static_cast<double>(light) * 0x1p-40)) : kWeightless;
    const float least = largest + lightest - 1e-3f - __builtin_fabsf(largest) * 0x1p-21f;
    const Cut found = cut(weighed_at_least(work, least, largest), target);
    const float threshold = value_of(found.key);
    forbid_below(row, threshold);
    const int64_t stay = (target - found.above + found.weight - 1) / found.weight;
    if (stay < found.count) forbid_after(row, threshold, stay);
}

void min_p(const Logits& a, float log_p) {
    const Row row = work_on(a).row;
    forbid_below(row, find_largest(row) + log_p);
}

int64_t draw_token(const Logits& a, double u) {
    const Row row = work_on(a).row;
    const float largest = find_largest(row);
    if (!(largest - largest == 0)) return a.count - 1;
    // The first cumulative weight above u * total; u is a multiple of 2^-53, or rounded down to one.
    const unsigned __int128 product =
        static_cast<unsigned __int128>(u * 0x1p53) * static_cast<uint64_t>(weigh_blocks(row, largest));
    int64_t left = static_cast<int64_t>(product >> 53), block = 0;
    while (left >= row.weights[block]) left -= row.weights[block++];
    float room[kBlock];
    int64_t weights[kBlock], i = 0;
    weigh<kBlock>(row.read(block, room), largest, weights);
    while (left >= weights[i]) left -= weights[i++];
    return block * kBlock + i;
}

}  // namespace

constinit const DrawTable draw = {top_k, top_p, min_p, draw_token};

}  // namespace headrace::HR_LEVEL
