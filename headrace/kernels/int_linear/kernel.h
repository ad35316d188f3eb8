// int_linear: what cpu.cpp offers at each level, and bind.cpp calls.
//
// Packed weights, [outputs, width] codes of 1 to 8 bits, are one run of bytes that a product reads front to
// back:
//
//   block   64 outputs                      blocks of outputs, the last one padded
//     record   one group of inputs          `group` inputs, a multiple of 32, or all of them; the last may be
//     shorter
//       scales   64 x f16
//       zeros    64 x u8                    only if the format has zero points; else every zero point is
//       2^(bits-1) chunk    32 inputs                  the last one padded
//         tile     16 outputs               64 * bits bytes: the code's planes, lowest bits first
//
//   quad   four inputs of one output, neighbours: one 32-bit lane of a dot product; a chunk has quads 0..7
//   plane  of a tile: 8, 4, 2 or 1 bits of every code, in registers of 16 outputs x 4 inputs:
//            8 bits   eight registers; register i holds quad i
//            4 bits   four;            register i holds quad i in its low nibbles, quad i + 4 in the high
//            ones 2 bits   two;             register i holds quad i + 2j in bits 2j, 2j + 1 1 bit    one; it
//            holds quad j in bit j
#pragma once

#include <stdint.h>

#include "headrace/floats.h"
#include "headrace/level.h"
#include "headrace/product.h"

namespace headrace {

constexpr int64_t kBlock = 64;  // outputs
constexpr int64_t kTile = 16;   // outputs
constexpr int64_t kChunk = 32;  // inputs
constexpr int64_t kQuads = 8;   // per chunk

// Sizes of packed weights.
struct IntShape {
    int64_t width, outputs, group;
    int bits;
    bool zeros;

    int64_t blocks() const { return (outputs + kBlock - 1) / kBlock; }
    int64_t groups() const { return (width + group - 1) / group; }
    int64_t chunks() const { return (width + kChunk - 1) / kChunk; }
    int64_t padded() const { return chunks() * kChunk; }
    int64_t group_chunks(int64_t g) const {
        const int64_t first = g * group, rest = width - first < group ? width - first : group;
        return (rest + kChunk - 1) / kChunk;
    }
    // Inputs that a tile of rows covers; no step crosses a group.
    int64_t step() const { return group % 64 == 0 || group >= width ? 64 : kChunk; }
    int64_t steps() const { return (padded() + step() - 1) / step(); }
    int64_t top_bytes() const { return 0; }  // of a block, before its first record
    int64_t head_bytes() const { return kBlock * (zeros ? 3 : 2); }
    int64_t chunk_bytes() const { return 4 * 64 * bits; }
    int64_t block_bytes() const { return groups() * head_bytes() + chunks() * chunk_bytes(); }
};

// Rows of activations, quantised: value = scale * code, codes in [-127, 127].
struct IntRows {
    // Input i of a row lies at row * stride + i / shape.step() * step_bytes + i % shape.step(); beyond the
    // width codes are 0. Either rows are contiguous, or steps are: [inputs / step][rows][step].
    int8_t* codes;
    float* scales;  // [rows]
    int32_t* sums;  // [rows, shape.groups()]: of the codes, group by group
    int64_t rows, stride, step_bytes;
};

// Rows times packed weights, of this shape or another one made of the same chunks.
template <class Shape>
struct PackedLinear {
    Shape shape;
    IntRows rows;
    const uint8_t* packed;
    ProductEnd end;
    int64_t few;  // up to so many rows, codes are unpacked in registers, for some rows at a time

    // Where an input's code lies in a row.
    int64_t place(int64_t input) const {
        return input / shape.step() * rows.step_bytes + input % shape.step();
    }
};
using IntLinear = PackedLinear<IntShape>;

// What is packed: value = scale * (code - zero).
struct IntCodes {
    const uint8_t* codes;    // [outputs, width], below 2^bits
    const uint16_t* scales;  // [outputs, groups], f16
    const uint8_t* zeros;    // [outputs, groups], or null
};

// What stands in the way of rounding them.
enum class Unfit { nothing, not_finite, too_large };

// As reference.py says it.
constexpr const char kNotFinite[] =
    "some weights are infinite or not a number: the checkpoint is damaged, download it again";
constexpr const char kTooLarge[] =
    "some weights are too large: the scale of their codes is beyond float16's 65504; store them in bf16";

struct IntLinearTable {
    bool (*stepwise)(const IntShape&, int64_t rows, int64_t few);  // whether rows are wanted step by step
    void (*quantise)(const IntShape&, const RowSource&, const IntRows&);
    void (*multiply)(const IntLinear&);
    void (*pack)(const IntShape&, const IntCodes&, uint8_t* packed);
    Unfit (*round)(const IntShape&, const Floats& rows, uint8_t* packed);
    void (*read_outputs)(const IntShape&, const uint8_t* packed, const int64_t* outputs, int64_t count,
                         float* out);
};

HR_TABLE(IntLinearTable, int_linear)

}  // namespace headrace
