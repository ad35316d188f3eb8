// best_pages for processors. Compiled once per level.
//
// A float's bits, the last 31 of them flipped where it is negative, are an integer in the same order. The
// score of the last page that is taken is found bit by bit: 32 times it is counted how many are not below
// what it might be, which needs no sorting.
//
// Bound: every score is read once, and once more for the largest.
#include <math.h>
#include <string.h>

#include "best_pages/kernel.h"
#include "headrace/parallel.h"
#include "headrace/simd_math.h"

namespace headrace::HR_LEVEL {
namespace {

constexpr int32_t kNever = INT32_MIN;  // below every number

inline int32_t in_order(float x) {
    int32_t bits;
    memcpy(&bits, &x, 4);
    return bits < 0 ? bits ^ INT32_MAX : bits;
}

float largest_of(const float* x, int64_t count) {
    F32x16 most = broadcast(-INFINITY);
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) most = max(load(x + i), most);
    float found = largest(most);
    for (; i < count; ++i) found = x[i] > found ? x[i] : found;
    return found;
}

// best[b] = the best of the heads' scores, each counted from its own largest.
void gather(const float* scores, int64_t heads, int64_t width, int64_t count, float* best) {
    for (int64_t m = 0; m < heads; ++m, scores += width) {
        const float most = largest_of(scores, count);
        for (int64_t b = 0; b < count; ++b) {
            const float score = scores[b] - most;
            best[b] = m == 0 || score > best[b] ? score : best[b];
        }
    }
}

// The largest key that at least `wanted` of the keys are not below; 0 < wanted <= count.
int32_t last_taken(const int32_t* keys, int64_t count, int64_t wanted) {
    const auto reached = [&](int32_t key) {
        int32_t found = 0;
        for (int64_t b = 0; b < count; ++b) found += keys[b] >= key;
        return found >= wanted;
    };
    int32_t key = reached(0) ? 0 : kNever;  // the sign first
    for (int32_t bit = 1 << 30; bit; bit >>= 1)
        if (reached(key + bit)) key += bit;
    return key;
}

// Of so many pages the best `wanted`; of equals the first.
void take(const int32_t* keys, int64_t count, int64_t wanted, uint8_t* out) {
    if (wanted <= 0) {
        memset(out, 0, static_cast<size_t>(count));
        return;
    }
    const int32_t last = last_taken(keys, count, wanted);
    for (int64_t b = 0; b < count; ++b) {
        out[b] = keys[b] > last;
        wanted -= out[b];
    }
    for (int64_t b = 0; b < count && wanted > 0; ++b)
        if (keys[b] == last) out[b] = 1, --wanted;
}

void choose(const BestPages& a, int64_t row, int64_t kv_head) {
    const int64_t each = a.heads / a.kv_heads, pages = a.pages[row];
    const int64_t begin = a.leading < pages ? a.leading : pages;
    const int64_t end = a.first[row] < begin ? begin : a.first[row] < pages ? a.first[row] : pages;
    const int64_t count = end - begin, anyway = pages - count;
    uint8_t* out = a.out + (kv_head * a.rows + row) * a.width;
    memset(out, 1, static_cast<size_t>(pages));
    memset(out + pages, 0, static_cast<size_t>(a.width - pages));
    auto* best = static_cast<float*>(scratch(Scratch::piece, count * 8));
    auto* keys = reinterpret_cast<int32_t*>(best + count);
    gather(a.scores + (row * a.heads + kv_head * each) * a.width + begin, each, a.width, count, best);
    for (int64_t b = 0; b < count; ++b) keys[b] = in_order(best[b]);
    take(keys, count, a.kept[row] - anyway, out + begin);
}

void best(const BestPages& a) {
    for_each_row(a.rows * a.kv_heads, a.width * (a.heads / a.kv_heads + 4),
                 [&](int64_t i) { choose(a, i / a.kv_heads, i % a.kv_heads); });
}

}  // namespace

constinit const BestPagesTable best_pages = {best};

}  // namespace headrace::HR_LEVEL
