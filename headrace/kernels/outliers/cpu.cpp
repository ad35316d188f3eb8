// outliers for processors. Compiled once per level.
//
// A group's largest weights are kept in order while it is read; few others are larger than the least of
// them. __init__.py states the arithmetic: every step is one operation in float32, so all levels and PyTorch
// agree.
//
// Bounds, per part: the weights read once, a float per weight written and read twice, in the second-level
// cache.
#include <algorithm>

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
    std::fill(keys, keys + wanted, 0);
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
            for (int to = set; to < ends.count; ++to)
                best = std::max(best,
                                (saved[to] - saved[from]) / static_cast<float>(ends.at[to] - ends.at[from]));
            slope = from == 0 ? best : std::min(slope, best);
        }
        for (int64_t k = ends.at[set - 1]; k < ends.at[set]; ++k)
            if (keys[k] != 0) worth[place_of(keys[k])] = slope * (1 - static_cast<float>(k) * 0x1p-20f);
    }
}

// Marks the `count` largest; of equals the first ones. `room` has as many numbers as are above zero.
void mark(const float* worth, int64_t size, int64_t count, float* room, uint8_t* marks) {
    float* end = room;
    for (int64_t i = 0; i < size; ++i)
        if (worth[i] > 0) *end++ = worth[i];
    float least = 0;
    if (end - room >= count) {
        std::nth_element(room, room + count - 1, end, [](float x, float y) { return x > y; });
        least = room[count - 1];
    }
    int64_t left = count;
    for (int64_t i = 0; i < size; ++i) left -= worth[i] > least;
    for (int64_t i = 0; i < size; ++i) {
        const bool same = worth[i] == least && left > 0;
        left -= same;
        marks[i] = worth[i] > least || same;
    }
}

bool choose_part(const Outliers& a, const Ends& ends, int64_t part) {
    const int64_t size = a.part_size();
    const bf16* const rows = a.rows + part * size;
    float* const worth = static_cast<float*>(scratch(Scratch::piece, (size + a.offered()) * 4));
    std::fill(worth, worth + size, 0.0f);
    uint32_t keys[Outliers::kMost + 1];
    bool finite = true;
    for (int64_t first = 0; first < size; first += a.width) {
        for (int64_t i = 0; i < a.width; i += a.group) {
            const int64_t count = std::min(a.group, a.width - i);
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
