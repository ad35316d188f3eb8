// rms_norm for processors. Compiled once per level.
#include "headrace/bf16.h"
#include "headrace/norm.h"
#include "headrace/parallel.h"
#include "headrace/simd.h"
#include "rms_norm/kernel.h"

namespace headrace::HR_LEVEL {
namespace {

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
    for_each_row(a.rows, a.width, [&](int64_t row) {
        const T* x_row = x + row * a.width;
        const float scale = norm_scale(x_row, a.width, a.eps);
        normalise(x_row, weight, out + row * a.width, scale, a.weight_offset, a.width);
    });
}

}  // namespace

constinit const RmsNormTable rms_norm = {rms_norm_rows<float>, rms_norm_rows<bf16>};

}  // namespace headrace::HR_LEVEL
