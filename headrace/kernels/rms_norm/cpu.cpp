// rms_norm for processors. Compiled once per level.
#include "headrace/bf16.h"
#include "headrace/parallel.h"
#include "headrace/simd.h"
#include "rms_norm/kernel.h"

namespace headrace::HR_LEVEL {
namespace {

// Four running sums hide the latency of the multiply-add. The order of additions depends on `width` only.
template <class T>
float sum_of_squares(const T* x, int64_t width) {
    F32x16 sums[4] = {broadcast(0), broadcast(0), broadcast(0), broadcast(0)};
    int64_t i = 0;
    for (; i + 4 * kLanes <= width; i += 4 * kLanes) {
        for (int k = 0; k < 4; ++k) {
            const F32x16 v = load(x + i + k * kLanes);
            sums[k] = fma(v, v, sums[k]);
        }
    }
    for (; i + kLanes <= width; i += kLanes) {
        const F32x16 v = load(x + i);
        sums[0] = fma(v, v, sums[0]);
    }
    if (i < width) {
        const F32x16 v = load_first(x + i, width - i);
        sums[1] = fma(v, v, sums[1]);
    }
    return sum((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

template <class T>
void normalise(const T* x, const T* weight, T* out, float scale, float weight_offset, int64_t width) {
    const F32x16 scales = broadcast(scale);
    const F32x16 offsets = broadcast(weight_offset);
    int64_t i = 0;
    for (; i + kLanes <= width; i += kLanes)
        store(out + i, load(x + i) * scales * (load(weight + i) + offsets));
    if (i < width) {
        const int64_t rest = width - i;
        store_first(out + i, load_first(x + i, rest) * scales * (load_first(weight + i, rest) + offsets),
                    rest);
    }
}

template <class T>
void rms_norm_rows(const RmsNorm& a) {
    const T* x = static_cast<const T*>(a.x);
    const T* weight = static_cast<const T*>(a.weight);
    T* out = static_cast<T*>(a.out);
    for_each_row(a.rows, [&](int64_t row) {
        const T* x_row = x + row * a.width;
        const float mean = sum_of_squares(x_row, a.width) / static_cast<float>(a.width);
        const float scale = 1.0f / __builtin_sqrtf(mean + a.eps);
        normalise(x_row, weight, out + row * a.width, scale, a.weight_offset, a.width);
    });
}

}  // namespace

constinit const RmsNormTable rms_norm = {rms_norm_rows<float>, rms_norm_rows<bf16>};

}  // namespace headrace::HR_LEVEL
