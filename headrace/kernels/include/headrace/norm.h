// The two halves of an RMS norm, which several kernels share.
#pragma once

#include "headrace/simd.h"

namespace headrace::HR_LEVEL {

// Four running sums hide the latency of the multiply-add. The order of additions depends on `width` only.
template <class T>
inline float sum_of_squares(const T* x, int64_t width) {
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

// 1 / rms
template <class T>
inline float norm_scale(const T* x, int64_t width, float eps) {
    return 1.0f / __builtin_sqrtf(sum_of_squares(x, width) / static_cast<float>(width) + eps);
}

}  // namespace headrace::HR_LEVEL
