// rope for processors. Compiled once per level. Products and sums are rounded apart, as the reference does.
#include "headrace/parallel.h"
#include "headrace/simd_math.h"
#include "rope/kernel.h"

namespace headrace::HR_LEVEL {
namespace {

void rotate_head(float* first, float* second, const float* cos, const float* sin, int64_t pairs) {
    for (int64_t i = 0; i < pairs; i += kLanes) {
        const int64_t n = pairs - i < kLanes ? pairs - i : kLanes;
        const bool whole = n == kLanes;
        const F32x16 c = whole ? load(cos + i) : load_first(cos + i, n);
        const F32x16 s = whole ? load(sin + i) : load_first(sin + i, n);
        const F32x16 a = whole ? load(first + i) : load_first(first + i, n);
        const F32x16 b = whole ? load(second + i) : load_first(second + i, n);
        const F32x16 left = a * c - b * s, right = b * c + a * s;
        whole ? store(first + i, left) : store_first(first + i, left, n);
        whole ? store(second + i, right) : store_first(second + i, right, n);
    }
}

void rotate(const Rope& a) {
    for_each_row(a.rows, 4 * a.heads * a.pairs, [&](int64_t row) {
        const float *cos = a.cos + a.positions[row] * a.pairs, *sin = a.sin + a.positions[row] * a.pairs;
        for (int64_t head = 0; head < a.heads; ++head) {
            float* x = a.x + row * a.stride + head * 2 * a.pairs;
            rotate_head(x, x + a.pairs, cos, sin, a.pairs);
        }
    });
}

}  // namespace

constinit const RopeTable rope = {rotate};

}  // namespace headrace::HR_LEVEL
