// bfloat16: the upper half of a float32.
#pragma once

#include <stdint.h>
#include <string.h>

namespace headrace {

struct bf16 {
    uint16_t bits;
};

}  // namespace headrace

#ifdef HR_LEVEL
namespace headrace::HR_LEVEL {

inline float to_float(float x) {
    return x;
}

inline float to_float(int8_t x) {
    return x;
}

inline float to_float(bf16 x) {
    const uint32_t bits = uint32_t{x.bits} << 16;
    float wide;
    memcpy(&wide, &bits, sizeof wide);
    return wide;
}

// Round to nearest, ties to even; a NaN stays a NaN. The same rule as PyTorch's, subnormals included.
inline bf16 to_bf16(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    if (x != x) return {static_cast<uint16_t>((bits >> 16) | 0x40)};
    return {static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
}

}  // namespace headrace::HR_LEVEL
#endif
