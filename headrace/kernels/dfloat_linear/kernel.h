// dfloat_linear: what cpu.cpp offers at each level, and bind.cpp calls.
//
// bfloat16 weights, [outputs, width], as bytes: the low ones (mantissa, and the last bit of the exponent) as
// they are, the high ones (sign, and the rest of the exponent) as codes of 3 bits. Blocks, chunks and tiles
// are those of bf16_linear/kernel.h. What has a fixed size is one run of bytes that a product reads front to
// back:
//
//   block   64 outputs
//     table       64 bytes, of which the first eight are the high bytes that codes stand for
//     chunk       32 inputs
//       tile        16 outputs: 512 weights in bf16_linear's order, as eight registers of 64
//         codes       3 x 64 bytes. Byte register r has the code of register 2 r in bits 0-2, of 2 r + 1 in
//         bits
//                     4-6, bit r of register 6's code in bit 3, and of register 7's in bit 7
//         low         8 x 64 bytes
//
//   Eights of bytes in a register lie in the order 0 2 1 3 4 6 5 7, so that interleaving two registers as
//   AVX2 does (within halves) gives words in their order.
//
// What has not, the high bytes that no code stands for, is another run, where each block has a stretch:
//
//   chunk   count   u16, then `count` escapes
//   escape  gap     u8: from the last escape's weight to this one's, of the chunk's 2048; the first from 0
//           high    u8: one that has a code where the gap to the next escape is above 255
#pragma once

#include "bf16_linear/kernel.h"

namespace headrace {

struct DfloatShape : Bf16Shape {
    static constexpr int64_t kRegister = 64, kRegisters = 8, kEntries = 8;
    static constexpr int64_t kCodeBytes = 3 * kRegister;
    static constexpr int64_t kTileBytes = kCodeBytes + kRegisters * kRegister;
    static constexpr int64_t kChunkItems = kTiles * kTileItems, kChunkBytes = kTiles * kTileBytes;
    static constexpr int64_t kHeadBytes = 64;
    static constexpr int64_t kMostEscapeBytes = 2 + 2 * kChunkItems;  // of a chunk

    int64_t block_bytes() const { return kHeadBytes + chunks() * kChunkBytes; }
};

// Where a block's weights are.
struct DfloatWeight {
    DfloatShape shape;
    uint8_t* planes;
    const uint8_t* escapes;
    const int64_t* starts;  // [blocks + 1]: of the blocks' stretches
    int64_t escape_bytes;   // of all
};

struct DfloatLinear : Bf16Rows {
    DfloatWeight weight;
};

// Functions return false where escapes are damaged: then results are wrong, and nothing else is touched.
struct DfloatLinearTable {
    int64_t row_item_bytes;
    bool (*multiply)(const DfloatLinear&);
    // `escapes` has room for blocks * chunks * kMostEscapeBytes; `sizes` [blocks] become those of the
    // stretches.
    void (*pack)(const DfloatShape&, const Floats& weight, uint8_t* planes, uint8_t* escapes, int64_t* sizes);
    bool (*read_outputs)(const DfloatWeight&, const int64_t* outputs, int64_t count, float* out);
};

HR_TABLE(DfloatLinearTable, dfloat_linear)

}  // namespace headrace
