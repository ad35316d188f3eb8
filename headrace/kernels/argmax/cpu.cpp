// argmax for processors. Compiled once per level.
//
// One pass finds the largest value of every stretch of a row, and whether the stretch holds a NaN; then the
// stretch that wins is looked at once more, for the place. Bound: the row is read once.
#include <math.h>

#include "argmax/kernel.h"
#include "headrace/parallel.h"
#include "headrace/simd_math.h"

namespace headrace::HR_LEVEL {
namespace {

constexpr int64_t kStretch = 4096;  // values: 16 KB of float32, which stay in the nearest cache

// The largest value; NaN if one of them is.
template <class T>
float largest_of(const T* x, int64_t count) {
    F32x16 most = broadcast(-INFINITY), numbers = broadcast(1);
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) {
        const F32x16 v = load(x + i);
        most = max(v, most);
        numbers = where_at_least(v, v, numbers);  // a NaN is not at least itself
    }
    float found = largest(most);
    bool nan = sum(numbers) < kLanes;
    for (; i < count; ++i) {
        const float v = to_float(x[i]);
        found = v > found ? v : found;
        nan |= v != v;
    }
    return nan ? NAN : found;
}

template <class T>
int64_t first_place(const T* x, int64_t count, float value) {
    for (int64_t i = 0; i < count; ++i) {
        const float v = to_float(x[i]);
        if (v == value || (v != v && value != value)) return i;
    }
    return 0;
}

// The first stretch that holds the largest value: a NaN is larger than any number.
int64_t best_stretch(const float* largest, int64_t count) {
    int64_t best = 0;
    for (int64_t i = 0; i < count && largest[best] == largest[best]; ++i)
        if (!(largest[i] <= largest[best])) best = i;
    return best;
}

template <class T>
void argmax_rows(const Argmax& a) {
    const int64_t stretches = (a.width + kStretch - 1) / kStretch;
    float* found = static_cast<float*>(scratch(Scratch::call, a.rows * stretches * 4));
    const auto at = [&](int64_t row, int64_t stretch) {
        return static_cast<const T*>(a.x) + row * a.stride + stretch * kStretch;
    };
    const auto length = [&](int64_t stretch) {
        const int64_t rest = a.width - stretch * kStretch;
        return rest < kStretch ? rest : kStretch;
    };
    for_each_row(a.rows * stretches, kStretch, [&](int64_t i) {
        found[i] = largest_of(at(i / stretches, i % stretches), length(i % stretches));
    });
    for (int64_t row = 0; row < a.rows; ++row) {
        const int64_t best = best_stretch(found + row * stretches, stretches);
        const float value = found[row * stretches + best];
        a.out[row] = best * kStretch + first_place(at(row, best), length(best), value);
    }
}

}  // namespace

constinit const ArgmaxTable argmax = {argmax_rows<float>, argmax_rows<bf16>};

}  // namespace headrace::HR_LEVEL
