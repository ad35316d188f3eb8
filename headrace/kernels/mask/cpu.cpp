// mask for processors. Compiled once per level.
//
// Bound: the row is read and written once.
#include <math.h>

#include "headrace/parallel.h"
#include "headrace/simd_math.h"
#include "mask/kernel.h"

namespace headrace::HR_LEVEL {
namespace {

constexpr int64_t kStretch = 8192;  // values, a multiple of kLanes

template <class T>
void mask_stretch(const T* x, const uint8_t* bits, int64_t count, float* out) {
    const F32x16 forbidden = broadcast(-INFINITY);
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes, bits += 2)
        store(out + i, where_set(bits[0] | bits[1] << 8, load(x + i), forbidden));
    for (; i < count; ++i) out[i] = bits[i % kLanes / 8] >> i % 8 & 1 ? to_float(x[i]) : -INFINITY;
}

template <class T>
void mask_row(const Mask& a) {
    for_each_row((a.width + kStretch - 1) / kStretch, kStretch, [&](int64_t piece) {
        const int64_t first = piece * kStretch, rest = a.width - first;
        mask_stretch(static_cast<const T*>(a.x) + first, a.bits + first / 8,
                     rest < kStretch ? rest : kStretch, a.out + first);
    });
}

}  // namespace

constinit const MaskTable mask = {mask_row<float>, mask_row<bf16>};

}  // namespace headrace::HR_LEVEL
