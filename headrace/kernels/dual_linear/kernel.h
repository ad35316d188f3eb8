// dual_linear: what cpu.cpp offers at each level, and bind.cpp calls.
//
// Packed weights, [outputs, width] codes of 3 or 4 bits, are one run of bytes that a product reads front to
// back:
//
//   block   64 outputs             blocks of outputs, the last one padded
//     scales   64 x f32            one per output
//     record   one group           `group` inputs, a multiple of 32, or all of them; the last may be shorter
//       heads    64 x u8           step - 1 in the low 8 - bits, zero point in the others
//       chunk    32 inputs         the last one padded; as in int_linear/kernel.h
//
// An output's weight is scale * w8, w8 = step * (code - zero) in [-128, 127].
#pragma once

#include "int_linear/kernel.h"

namespace headrace {

// A row's sum of w8 * a fits in 32 bits: 2^17 * 128 * 127 < 2^31. Sums over some of the inputs do, too.
constexpr int64_t kDualMaxWidth = 1 << 17;
static_assert(kDualMaxWidth * 128 * 127 < int64_t{1} << 31);

// Sizes of packed weights. Rows are quantised as int_linear's.
struct DualShape : IntShape {
    DualShape(int64_t width, int64_t outputs, int64_t group, int bits)
        : IntShape{width, outputs, group, bits, /*zeros=*/false} {}

    int top() const { return (1 << bits) - 1; }  // the greatest code and zero point
    int64_t top_bytes() const { return kBlock * 4; }
    int64_t head_bytes() const { return kBlock; }
    int64_t block_bytes() const { return top_bytes() + groups() * head_bytes() + chunks() * chunk_bytes(); }
};

using DualLinear = PackedLinear<DualShape>;

struct DualLinearTable {
    void (*quantise)(const IntShape&, const RowSource&, const IntRows&);
    void (*multiply)(const DualLinear&);
    bool (*round)(const DualShape&, const Floats& rows, uint8_t* packed);  // false: some were not finite
    void (*read_outputs)(const DualShape&, const uint8_t* packed, const int64_t* outputs, int64_t count,
                         float* out);
};

HR_TABLE(DualLinearTable, dual_linear)

}  // namespace headrace
