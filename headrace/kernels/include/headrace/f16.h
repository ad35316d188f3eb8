// float16 as IEEE 754 has it, one number at a time.
#pragma once

#include <stdint.h>
#include <string.h>

namespace headrace {

struct f16 {
    uint16_t bits;
};

}  // namespace headrace

#ifdef HR_LEVEL

#if defined(HR_LEVEL_AVX2) || defined(HR_LEVEL_AVX512)
#include <immintrin.h>
#endif

namespace headrace::HR_LEVEL {

#if defined(HR_LEVEL_AVX2) || defined(HR_LEVEL_AVX512)

inline float to_float(f16 x) {
    return _cvtsh_ss(x.bits);
}

// Round to nearest, ties to even; 65520 and more become infinite.
inline f16 to_f16(float x) {
    return {_cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT)};
}

#else

inline float to_float(f16 x) {
    const uint32_t sign = uint32_t{x.bits} >> 15 << 31, exponent = x.bits >> 10 & 31,
                   fraction = x.bits & 1023;
    if (exponent == 0) {  // zero or subnormal: fraction * 2^-24
        const float small = static_cast<float>(fraction) * 0x1p-24f;
        return sign ? -small : small;
    }
    const uint32_t bits = sign | (exponent == 31 ? 255u : exponent + 112) << 23 | fraction << 13;
    float wide;
    memcpy(&wide, &bits, sizeof wide);
    return wide;
}

inline f16 to_f16(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    const uint32_t sign = bits >> 16 & 0x8000;
    uint32_t rest = bits & 0x7fffffff;
    if (rest > 0x7f800000) {
        rest = 0x7e00 | (rest >> 13 & 0x1ff);  // a NaN stays one
    } else if (rest >= 0x477ff000) {
        rest = 0x7c00;
    } else if (rest >= 0x38800000) {
        rest = (rest - (112u << 23) + 0xfff + (rest >> 13 & 1)) >> 13;
    } else {  // subnormal: beside one half, float32 has steps of 2^-24
        const float sum = 0.5f + __builtin_fabsf(x);
        memcpy(&rest, &sum, sizeof rest);
        rest -= 0x3f000000;
    }
    return {static_cast<uint16_t>(sign | rest)};
}

#endif

}  // namespace headrace::HR_LEVEL
#endif
