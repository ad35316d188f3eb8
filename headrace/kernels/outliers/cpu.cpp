// outliers for processors. Compiled once per level.
//
// A group's largest weights are found by guessing how large they are, as those of the group before, and put
// in order by counting for each how many are larger: neither branches on what cannot be foretold. __init__.py
// states the arithmetic: every step is one operation in float32, so all levels and PyTorch agree.
//
// Bounds, per part: the weights read once; a number and a place per weight that is offered written and read
// four times, in the second-level cache.
#include "headrace/parallel.h"
#include "headrace/simd_math.h"
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

constexpr uint16_t kInfinite = 0x7f80;  // no magnitude that is a number is as large
constexpr int64_t kSpare = 24;  // weights beyond those wanted that are put in order rather than told apart
constexpr int64_t kRoom = Outliers::kMost + 1 + kSpare + 8;

// Weights of which some are the largest.
struct Group {
    const bf16* weights;
    int64_t count;

    // Of 16 from i on, those whose magnitude is at least `least`, which is above 0.
    uint32_t bits(int64_t i, uint16_t least) const {
        const int64_t n = count - i < kLanes ? count - i : kLanes;
        const F32x16 x = n == kLanes ? load(weights + i) : load_first(weights + i, n);
        return bits_at_least(magnitude(x), broadcast(to_float(bf16{least})));
    }
    int64_t number(uint16_t least) const {
        int64_t n = 0;
        for (int64_t i = 0; i < count; i += kLanes) n += __builtin_popcount(bits(i, least));
        return n;
    }
    uint16_t magnitude_at(int64_t i) const { return weights[i].bits & 0x7fff; }
};

// Weights of at least `least` are `number`: as many as wanted, and not many more if they can be told apart.
struct Cut {
    uint16_t least;
    int64_t number;
};

// Looks around `guess`, further and further, and then between what is too low and what is too high.
Cut find_cut(const Group& group, int64_t wanted, uint16_t guess) {
    Cut low{0, group.count};
    int high = kInfinite, at = guess > 0 ? guess : 1;
    for (int step = 4; low.number > wanted + kSpare && high - low.least > 1; step *= 2) {
        const int64_t number = group.number(static_cast<uint16_t>(at));
        if (number >= wanted)
            low = {static_cast<uint16_t>(at), number};
        else
            high = at;
        const int next = number >= wanted ? at + step : at - step;
        at = next > low.least && next < high ? next : (low.least + high) / 2;
    }
    return low;
}

// In falling order, into `sorted`. All have kRoom.
void sort_falling(uint32_t* keys, int64_t count, uint32_t* sorted) {
    typedef uint32_t Eight __attribute__((vector_size(32)));
    memset(keys + count, 0, sizeof(Eight));
    for (int64_t i = 0; i < count; i += 8) {
        Eight these, larger = {};
        memcpy(&these, keys + i, sizeof these);
        for (int64_t k = 0; k < count; ++k) larger -= reinterpret_cast<Eight>(keys[k] > these);
        for (int64_t lane = 0; lane < 8 && i + lane < count; ++lane) sorted[larger[lane]] = keys[i + lane];
    }
}

// The `wanted` largest of some weights, in falling order; zeros where there are not so many. `keys` has
// kRoom. `guess` is how large they were in the group before.
void find_largest(const Group& group, int64_t wanted, uint16_t& guess, uint32_t* keys) {
    uint32_t found[kRoom];
    int64_t count = 0;
    const Cut cut = find_cut(group, wanted, guess);
    // Of those that cannot be told apart, the first ones.
    const bool equal = cut.number > wanted + kSpare;
    const int above = equal ? cut.least + 1 : cut.least;
    int64_t left = equal ? wanted - group.number(static_cast<uint16_t>(above)) : 0;
    for (int64_t i = 0; i < group.count; i += kLanes) {
        if (above == 0) {
            for (int64_t k = i; k < i + kLanes && k < group.count; ++k)
                found[count++] = key_of(group.weights[k], k);
            continue;
        }
        for (uint32_t bits = group.bits(i, static_cast<uint16_t>(above)); bits; bits &= bits - 1) {
            const int64_t at = i + __builtin_ctz(bits);
            found[count++] = key_of(group.weights[at], at);
        }
    }
    for (int64_t i = 0; left > 0; ++i) {
        if (group.magnitude_at(i) != cut.least) continue;
        found[count++] = key_of(group.weights[i], i);
        --left;
    }
    memset(keys, 0, static_cast<size_t>(wanted) * sizeof *keys);
    sort_falling(found, count, keys);
    guess = cut.least;
}

bool all_finite(const bf16* weights, int64_t count) {
    uint16_t most = 0;
    for (int64_t i = 0; i < count; ++i) {
        const uint16_t size = weights[i].bits & 0x7fff;
        most = size > most ? size : most;
    }
    return most < kInfinite;
}

// Ends of the sets that a group offers: 0, 1, 2, 4 and so on, and `most`.
struct Ends {
    static constexpr int kSets = 12;
    int64_t at[kSets] = {};
    float distance[kSets][kSets];  // [from][to]
    int count = 0;

    explicit Ends(int64_t most) {
        at[count++] = 0;
        for (int64_t end = 1; end < most; end *= 2) at[count++] = end;
        at[count++] = most;
        for (int from = 0; from < kSets; ++from)
            for (int to = 0; to < kSets; ++to)
                distance[to][from] = from < to && to < count ? static_cast<float>(at[to] - at[from]) : 1.0f;
    }
};

// What is offered by the groups of a part: what each weight saves, and where it lies in the part.
struct Offers {
    float* worth;
    int32_t* places;
    int64_t wanted;
    int64_t count = 0, enough = 4 * wanted;
    float least = 0;  // what is worth less is not chosen

    void add(float what, int64_t place) {
        worth[count] = what;
        places[count++] = static_cast<int32_t>(place);
    }
    // Drops what can no longer be chosen, now and then.
    void drop();
};

// A group's largest weights, of which there are `count`; it begins at `first` of the part.
void offer(const Ends& ends, const uint32_t* keys, int64_t count, int64_t first, Offers& offers) {
    constexpr int kSets = Ends::kSets;
    float saved[kSets] = {}, best[kSets] = {}, slopes[kSets];
    for (int s = 0; s < ends.count; ++s)
        saved[s] = (square_of(keys[0]) - square_of(keys[ends.at[s]])) * static_cast<float>(count);
    for (int set = ends.count - 1; set > 0; --set) {
        for (int from = 0; from < kSets; ++from) {
            const float rise = saved[set] - saved[from];
            const float each = rise / ends.distance[set][from];
            best[from] = each > best[from] ? each : best[from];
        }
        slopes[set] = best[0];
        for (int from = 1; from < set; ++from)
            slopes[set] = best[from] < slopes[set] ? best[from] : slopes[set];
    }
    for (int set = 1; set < ends.count; ++set) {
        for (int64_t k = ends.at[set - 1]; k < ends.at[set] && k < count; ++k) {
            const float worth = slopes[set] * (1 - static_cast<float>(k) * 0x1p-20f);
            if (worth < offers.least) return;  // as are all that follow
            offers.add(worth, first + place_of(keys[k]));
        }
    }
}

inline uint32_t bits_of(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

// The `rank`-th largest of numbers that are not negative, found eleven bits at a time.
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

void Offers::drop() {
    if (count < enough) return;
    least = find_ranked(worth, count, wanted);
    int64_t kept = 0;
    for (int64_t k = 0; k < count; ++k) {
        worth[kept] = worth[k];
        places[kept] = places[k];
        kept += worth[k] >= least;
    }
    count = kept;
    enough = 2 * count > 4 * wanted ? 2 * count : 4 * wanted;
}

// One bit per weight of a part.
struct Marks {
    uint64_t* words;

    void set(int64_t i) const { words[i / 64] |= uint64_t{1} << i % 64; }
};

// Places of the `count` largest offers, ascending; of equals, and of what is not offered, the first ones.
void take(const Outliers& a, const Offers& offers, Marks chosen, Marks equal, int64_t first,
          int64_t* places) {
    const int64_t words = a.part_words();
    const float least = offers.count < a.count ? 0 : find_ranked(offers.worth, offers.count, a.count);
    memset(chosen.words, 0, static_cast<size_t>(words) * 8);
    memset(equal.words, least == 0 ? 0xff : 0, static_cast<size_t>(words) * 8);
    int64_t left = a.count;
    for (int64_t k = 0; k < offers.count; ++k) {
        if (offers.worth[k] < least) continue;
        if (offers.worth[k] == least) {
            equal.set(offers.places[k]);
        } else {
            chosen.set(offers.places[k]);
            --left;
        }
    }
    for (int64_t w = 0; w < words; ++w) {
        uint64_t bits = chosen.words[w];
        for (uint64_t more = equal.words[w] & ~bits; more && left > 0; more &= more - 1, --left)
            bits |= more & -more;
        for (; bits; bits &= bits - 1) *places++ = first + w * 64 + __builtin_ctzll(bits);
    }
}

bool choose_part(const Outliers& a, const Ends& ends, int64_t part) {
    const int64_t size = a.part_size(), first = part * size;
    auto* words = static_cast<uint64_t*>(scratch(Scratch::piece, 16 * a.part_words() + 8 * a.offered()));
    auto* worth = reinterpret_cast<float*>(words + 2 * a.part_words());
    Offers offers{worth, reinterpret_cast<int32_t*>(worth + a.offered()), a.count};
    uint32_t keys[kRoom];
    uint16_t guess = 0x3f80;
    if (!all_finite(a.rows + first, size)) return false;
    for (int64_t row = 0; row < size; row += a.width) {
        for (int64_t i = 0; i < a.width; i += a.group) {
            const Group group{a.rows + first + row + i, a.width - i < a.group ? a.width - i : a.group};
            find_largest(group, a.most + 1, guess, keys);
            offer(ends, keys, group.count, row + i, offers);
            offers.drop();
        }
    }
    take(a, offers, {words}, {words + a.part_words()}, first, a.places + part * a.count);
    return true;
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
