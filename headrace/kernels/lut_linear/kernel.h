// lut_linear: what cpu.cpp offers at each level, and bind.cpp calls.
//
// Packed weights, [outputs, width] codes of 1 to 4 bits, are one run of bytes that a product reads front to
// back:
//
//   block   64 outputs               blocks of outputs, the last one padded
//     record   one group of inputs   `group` inputs, a multiple of 32, or all; the last may be shorter
//       scales   64 x f16
//       planes   bit planes of the codes, inputs padded to a multiple of 32
//
//   quad   four neighbouring inputs of a row: a table of the sixteen sums of them and their negatives
//   byte   two quads of one bit plane of an output: its nibbles index their tables, bit i for input i
//
// Planes lie in one of two orders, as a level looks them up. The wide order, for tables of 64 bytes:
//
//   chunk    32 inputs
//     tile     16 outputs
//       plane    64 bytes              byte 4 o + k has quad k of output o in its low nibble, quad k + 4 in
//       the high
//
// and the narrow one, for tables of 16 bytes:
//
//   run      128 inputs                or what is left of the group
//     pair     two bit planes          bits 0 and 1; bits 2 and 3
//       octet    8 inputs              128 bytes: byte 2 (o % 16) + b of part o / 16 has bit b of output o
//     single   one bit plane           the last one of 1 and 3 bits
//       octet    8 inputs              64 bytes: byte 2 (o % 16) + o / 16 % 2 of part o / 32 has output o
//
//   part   32 bytes
//
// Sizes are those of int_linear's weights without zero points.
#pragma once

#include "int_linear/kernel.h"

namespace headrace {

constexpr int kMostLutBits = 4;
constexpr int kMostEntry = 63;  // of a table
constexpr int kTableZero = 64;  // what is stored is entry + 64: two of them add up to a byte
constexpr int64_t kRun = 128;   // inputs whose sums fit in 16 bits
static_assert(2 * (kTableZero + kMostEntry) < 256);
static_assert(kRun / 8 * 3 * 2 * (kTableZero + kMostEntry) < 1 << 15);
constexpr int64_t kMostLutWidth = 1 << 20;  // a row's sums of 15 bytes per quad fit in 32 bits
static_assert(kMostLutWidth / 4 * 15 * 255 < int64_t{1} << 31);

// Rows of activations as tables.
struct LutRows {
    // [rows][padded / 4][16]; entry e of a quad is the sum of its inputs, input i with a minus unless bit i
    // of e is set, in units of its group's scale.
    uint8_t* tables;
    float* scales;  // [rows, groups]
    int32_t* sums;  // [rows, groups]: of the entries 15, that is of the inputs themselves
    int64_t rows;
};

struct LutLinear {
    IntShape shape;
    LutRows rows;
    const uint8_t* packed;
    ProductEnd end;
};

struct LutLinearTable {
    bool wide;  // the order of planes
    void (*tabulate)(const IntShape&, const RowSource&, const LutRows&);
    // As many rows as there are, some at a time.
    void (*multiply)(const IntShape&, const RowSource&, int64_t rows, const uint8_t* packed,
                     const ProductEnd&);
    void (*pack)(const IntShape&, const IntCodes&, uint8_t* packed);
    Unfit (*round)(const IntShape&, const Floats& rows, uint8_t* packed);
    void (*read_outputs)(const IntShape&, const uint8_t* packed, const int64_t* outputs, int64_t count,
                         float* out);
};

HR_TABLE(LutLinearTable, lut_linear)

}  // namespace headrace
