// lora for processors. Compiled once per level. See kernel.h for the layout of weights.
//
// Two passes over the groups, each cut over all of them: rows to ranks, then ranks to outputs. What is
// computed for a row goes in one order, whatever other rows there are: sums over inputs in sixteen
// lanes, then a sum over ranks in order.
//
// Bounds: with a row per adapter, the bytes of the weights; each is used once.
#include "headrace/parallel.h"
#include "headrace/simd.h"
#include "lora/kernel.h"

namespace headrace::HR_LEVEL {
namespace {

constexpr int64_t kRanks = 4;  // that one reading of a row serves

// hidden[r] = scale[r] * (down[r] . x) for `count` ranks, a constant.
template <int count, class T>
inline void shrink_row(const T* down, const float* scale, const float* x, int64_t padded, float* hidden) {
    F32x16 sums[count];
    HR_UNROLL for (int r = 0; r < count; ++r) sums[r] = broadcast(0);
    for (int64_t i = 0; i < padded; i += kLanes) {
        const F32x16 v = load(x + i);
        HR_UNROLL for (int r = 0; r < count; ++r) sums[r] = fma(load(down + r * padded + i), v, sums[r]);
    }
    HR_UNROLL for (int r = 0; r < count; ++r) hidden[r] = scale[r] * sum(sums[r]);
}

inline void pick(const int64_t* inputs, const float* scale, const float* x, int64_t count, float* hidden) {
    for (int64_t r = 0; r < count; ++r) hidden[r] = scale[r] * x[inputs[r]];
}

template <class T>
void shrink(const Lora& a, const LoraGroup& group, int64_t first) {
    const int64_t padded = a.padded(), count = group.ranks - first < kRanks ? group.ranks - first : kRanks;
    const T* down = static_cast<const T*>(group.down) + first * padded;
    const float* scale = group.scale + first;
    for (int64_t row = group.first_row; row < group.first_row + group.row_count; ++row) {
        const float* x = a.inputs + row * padded;
        float* hidden = a.hidden + row * a.most_ranks + first;
        if (group.inputs != nullptr) {
            pick(group.inputs + first, scale, x, count, hidden);
        } else if (count == kRanks) {
            shrink_row<kRanks>(down, scale, x, padded, hidden);
        } else {
            for (int64_t r = 0; r < count; ++r)
                shrink_row<1>(down + r * padded, scale + r, x, padded, hidden + r);
        }
    }
}

// out[first ...] += hidden . up, for a block of outputs of which `count` exist.
template <class T>
inline void expand_row(const T* up, int64_t ranks, const float* hidden, int64_t count, float* out) {
    constexpr int kVectors = LoraPart::kBlock / kLanes;
    F32x16 sums[kVectors];
    HR_UNROLL for (int k = 0; k < kVectors; ++k) sums[k] = broadcast(0);
    for (int64_t r = 0; r < ranks; ++r) {
        const F32x16 h = broadcast(hidden[r]);
        const T* at = up + r * LoraPart::kBlock;
        HR_UNROLL for (int k = 0; k < kVectors; ++k) sums[k] = fma(load(at + k * kLanes), h, sums[k]);
    }
    HR_UNROLL for (int k = 0; k < kVectors; ++k) {
        const int64_t rest = count - k * kLanes;
        float* to = out + k * kLanes;
        if (rest >= kLanes) {
            store(to, load(to) + sums[k]);
        } else if (rest > 0) {
            store_first(to, load_first(to, rest) + sums[k], rest);
        }
    }
}

// out[outputs[r]] += hidden[r]
void place(const Lora& a, const LoraGroup& group) {
    for (int64_t i = 0; i < group.row_count; ++i) {
        const float* hidden = a.hidden + (group.first_row + i) * a.most_ranks;
        float* out = a.out + group.rows[i] * a.outputs;
        for (int64_t r = 0; r < group.ranks; ++r) out[group.outputs[r]] += hidden[r];
    }
}

// `block` counts over all parts of the group.
template <class T>
void expand(const Lora& a, const LoraGroup& group, int64_t block) {
    const LoraPart* part = group.parts;
    const T* up = static_cast<const T*>(group.up);
    int64_t first_rank = 0;
    for (; block >= part->blocks(); ++part) {
        block -= part->blocks(), up += part->items(), first_rank += part->ranks;
    }
    const int64_t first = block * LoraPart::kBlock;
    up += first * part->ranks;
    for (int64_t i = 0; i < group.row_count; ++i) {
        const float* hidden = a.hidden + (group.first_row + i) * a.most_ranks + first_rank;
        float* out = a.out + group.rows[i] * a.outputs + part->first + first;
        expand_row(up, part->ranks, hidden, part->outputs - first, out);
    }
}

int64_t rank_blocks(const LoraGroup& group) {
    return (group.ranks + kRanks - 1) / kRanks;
}

int64_t output_blocks(const LoraGroup& group) {
    if (group.outputs != nullptr) return 1;
    int64_t count = 0;
    for (int64_t i = 0; i < group.part_count; ++i) count += group.parts[i].blocks();
    return count;
}

// function(group, piece) for every piece of every group.
template <class Count, class Function>
void for_each_piece(const Lora& a, const Count& count, int64_t cost, const Function& function) {
    int64_t all = 0;
    for (int64_t g = 0; g < a.group_count; ++g) all += count(a.groups[g]);
    for_each_row(all, cost, [&](int64_t piece) {
        const LoraGroup* group = a.groups;
        for (; piece >= count(*group); ++group) piece -= count(*group);
        function(*group, piece);
    });
}

void add(const Lora& a) {
    const int64_t padded = a.padded(), per_group = (a.row_count + a.group_count - 1) / a.group_count;
    for_each_row(a.group_count, 4 * a.width * per_group, [&](int64_t g) {
        const LoraGroup& group = a.groups[g];
        for (int64_t i = 0; i < group.row_count; ++i)
            read_row(a.source, group.rows[i], a.width, a.inputs + (group.first_row + i) * padded);
    });
    for_each_piece(a, rank_blocks, kRanks * padded * per_group, [&](const LoraGroup& group, int64_t piece) {
        group.is_bf16 ? shrink<bf16>(a, group, piece * kRanks) : shrink<float>(a, group, piece * kRanks);
    });
    for_each_piece(a, output_blocks, LoraPart::kBlock * a.most_ranks * per_group,
                   [&](const LoraGroup& group, int64_t piece) {
                       if (group.outputs != nullptr) return place(a, group);
                       group.is_bf16 ? expand<bf16>(a, group, piece) : expand<float>(a, group, piece);
                   });
}

}  // namespace

constinit const LoraTable lora = {add};

}  // namespace headrace::HR_LEVEL
