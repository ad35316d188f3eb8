// One group of one block, and what both orders of its planes have in common. Compiled once per level.
#pragma once

#include "lut_linear/kernel.h"

namespace headrace::HR_LEVEL {
namespace {

constexpr int64_t kLutAhead = 8192;  // bytes from what is looked up to what is fetched

struct LutRecord {
    const uint16_t* scales;  // [64]
    const uint8_t* planes;
    int64_t inputs;

    LutRecord(const IntShape& shape, const uint8_t* at, int64_t group)
        : scales(reinterpret_cast<const uint16_t*>(at)),
          planes(at + shape.head_bytes()),
          inputs(shape.group_chunks(group) * kChunk) {}

    const uint8_t* end(const IntShape& shape) const { return planes + inputs / kChunk * shape.chunk_bytes(); }
};

// A code q stands for scale * (q - 2^(b-1)), and at one bit for scale * (q - 1/2). What is looked up in the
// planes, times 2^plane, adds up to the sum of (2 q - 2^b + 1) * a, that is twice the product and the row's
// sum, and of kTableZero (2^b - 1) for each quad.
template <int kBits>
inline int32_t start(int32_t row_sum, int64_t quads) {
    return -(kBits > 1 ? row_sum : 0) - kTableZero * ((1 << kBits) - 1) * static_cast<int32_t>(quads);
}

// Bit 0 of eight bytes, the first one lowest.
inline uint8_t gathered(uint64_t bytes) {
    return static_cast<uint8_t>((bytes & 0x0101010101010101) * 0x0102040810204080 >> 56);
}

}  // namespace
}  // namespace headrace::HR_LEVEL
