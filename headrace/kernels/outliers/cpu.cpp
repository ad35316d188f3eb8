// outliers for processors. Compiled once per level.
//
// A group's largest weights are kept in order while it is read; few others are larger than the least of
// them. __init__.py states the arithmetic: every step is one operation in float32, so all levels and PyTorch
// agree.
//
// Bounds, per part: the weights read once, a float per weight written and read twice, in the second-level
// cache.
#include "headrace/parallel.h"
#include "outliers/kernel.h"

namespace headrace::HR_LEVEL {
namespace {

// A weight's magnitude, and of equals the first one: the larger, the earlier. None is 0.
inline uint32_t key_of(bf16 weight, int64_t place) {
    return static_cast<uint32_t>(weight.bits & 0x7fff) << 17 | (0x1ffff - static_cast<uint32_t>(place));
}

inline int64_t place_of(uint32_t key) {
    return 0x1ffff - (key & 0x1ffff);
}

inline uint16_t magnitude_of(uint32_t key) {
    return static_cast<uint16_t>(key >> 17);
}

inline float square_of(uint32_t key) {
    const float size = to_float(bf16{magnitude_of(key)});
    return size * size;
}

// The `wanted` largest of some weights, in falling order; zeros where there are not so many.
// False if some are not finite.
bool find_largest(const bf16* weights, int64_t count, int64_t wanted, uint32_t* keys) {
    memset(keys, 0, static_cast<size_t>(wanted) * sizeof *keys);
    for (int64_t i = 0; i < count; ++i) {
        const uint32_t key = key_of(weights[i], i);
        if (key <= keys[wanted - 1]) continue;
        int64_t at = wanted - 1;
        for (; at > 0 && keys[at - 1] < key; --at) keys[at] = keys[at - 1];
        keys[at] = key;
    }
    return magnitude_of(keys[0]) < 0x7f80;
}

// Ends of the sets that a group offers: 0, 1, 2, 4 and so on, and `most`.
struct Ends {
    int64_t at[12];
    int count = 0;

    explicit Ends(int64_t most) {
        at[count++] = 0;
        for (int64_t end = 1; end < most; end *= 2) at[count++] = end;
        at[count++] = most;
    }
};

// What each of a group's largest weights saves, put where it lies.
void put_worth(const Ends& ends, const uint32_t* keys, int64_t count, float* worth) {
    float saved[12];
    for (int s = 0; s < ends.count; ++s)
        saved[s] = (square_of(keys[0]) - square_of(keys[ends.at[s]])) * static_cast<float>(count);
    for (int set = 1; set < ends.count; ++set) {
        float slope = 0;
        for (int from = 0; from < set; ++from) {
            float best = 0;
            for (int to = set; to < ends.count; ++to) {
                const float rise = saved[to] - saved[from];
                const float each = rise / static_cast<float>(ends.at[to] - ends.at[from]);
                best = each > best ? each : best;
            }
            slope = from == 0 || best < slope ? best : slope;
        }
        for (int64_t k = ends.at[set - 1]; k < ends.at[set]; ++k)
            if (keys[k] != 0) worth[place_of(keys[k])] = slope * (1 - static_cast<float>(k) * 0x1p-20f);
    }
}

inline uint32_t bits_of(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

// The `rank`-th largest of positive numbers, found eleven bits at a time.
float find_ranked(const float* x, int64_t count, int64_t rank) {
    uint32_t found = 0;
    int known = 32;  // bits from here on are found
    constexpr int kShifts[] = {21, 10, 0};
    for (const int shift : kShifts) {
        int64_t counts[1 << 11] = {};
        for (int64_t i = 0; i < count; ++i) {
            const uint32_t bits = bits_of(x[i]);
            if (uint64_t{bits ^ found} >> known == 0) ++counts[bits >> shift & ((1u << (known - shift)) - 1)];
        }
        uint32_t digit = (1u << (known - shift)) - 1;
        for (; counts[digit] < rank; --digit) rank -= counts[digit];
        found |= digit << shift;
        known = shift;
    }
    float least;
    memcpy(&least, &found, sizeof least);
    return least;
}

// Marks the `count` largest; of equals the first ones. `room` has as many numbers as may be above zero, and
// one.
void mark(const float* worth, int64_t size, int64_t count, float* room, uint8_t* marks) {
    int64_t positive = 0;
    for (int64_t i = 0; i < size; ++i) {
        room[positive] = worth[i];
        positive += worth[i] > 0;
    }
    const float least = positive < count ? 0 : find_ranked(room, positive, count);
    int64_t left = count;
    for (int64_t i = 0; i < size; ++i) {
        marks[i] = worth[i] > least;
        left -= marks[i];
    }
    for (int64_t i = 0; left > 0; ++i) {
        if (worth[i] != least) continue;
        marks[i] = 1;
        --left;
    }
}

bool choose_part(const Outliers& a, const Ends& ends, int64_t part) {
    const int64_t size = a.part_size();
    const bf16* const rows = a.rows + part * size;
    float* const worth = static_cast<float*>(scratch(Scratch::piece, (size + a.offered() + 1) * 4));
    memset(worth, 0, static_cast<size_t>(size) * sizeof *worth);
    uint32_t keys[Outliers::kMost + 1];
    bool finite = true;
    for (int64_t first = 0; first < size; first += a.width) {
        for (int64_t i = 0; i < a.width; i += a.group) {
            const int64_t count = a.width - i < a.group ? a.width - i : a.group;
            finite &= find_largest(rows + first + i, count, a.most + 1, keys);
            put_worth(ends, keys, count, worth + first + i);
        }
    }
    mark(worth, size, a.count, worth + size, a.marks + part * size);
    return finite;
}

bool choose(const Outliers& a) {
    const Ends ends(a.most);
    bool finite = true;
    in_pieces(a.parts, 1, [&](int64_t begin, int64_t end) {
        for (int64_t part = begin; part < end; ++part)
            if (!choose_part(a, ends, part)) __atomic_store_n(&finite, false, __ATOMIC_RELAXED);
    });
    return finite;
}

}  // namespace

constinit const OutliersTable outliers = {choose};

}  // namespace headrace::HR_LEVEL
