// dual_linear for processors. Compiled once per level. See kernel.h for the layout of packed weights.
//
// All sums are integers, so neither the order nor the cut of anything matters; three float operations per
// output follow.
//
// Bounds, per 64 outputs x 32 inputs: 256 bytes per bit read; 32 r dot instructions of 64 products for r
// rows.
#include "dual_linear/pack.h"
#include "dual_linear/record.h"
#include "int_linear/dots.h"
#include "int_linear/rows.h"

namespace headrace::HR_LEVEL {
namespace {

template <int kBits>
void multiply_block(const DualLinear& a, int64_t block) {
    if (a.rows.rows <= a.few)
        dot_rows<DualRecord, kBits, false>(a, block);
    else
        dot_rows<DualRecord, kBits, true>(a, block);
}

void multiply(const DualLinear& a) {
    in_pieces(a.shape.blocks(), 1, [&](int64_t begin, int64_t end) {
        for (int64_t block = begin; block < end; ++block)
            a.shape.bits == 4 ? multiply_block<4>(a, block) : multiply_block<3>(a, block);
    });
}

// One output's weights in float32: a row of an embedding.
template <int kBits>
void read_output(const DualShape& shape, const uint8_t* packed, int64_t output, float* out) {
    const uint8_t* block = packed + output / kBlock * shape.block_bytes();
    const int64_t place = output % kBlock, tile = place / kTile, lane = place % kTile;
    const float scale = reinterpret_cast<const float*>(block)[place];
    const uint8_t* at = block + shape.top_bytes();
    float* const end = out + shape.width;
    for (int64_t g = 0; g < shape.groups(); ++g) {
        const DualRecord record(shape, at, g);
        const int step = record.steps[place] + 1, zero = record.zeros[place];
        for (int64_t c = 0; c < record.count; ++c) {
            Bytes quad[kQuads];
            unpack<kBits>(record.chunks + (c * kTiles + tile) * 64 * kBits, quad);
            for (int64_t k = 0; k < kQuads; ++k) {
                uint8_t codes[64];
                store_bytes(codes, quad[k]);
                for (int64_t i = 0; i < 4 && out < end; ++i)
                    *out++ = static_cast<float>(step * (codes[4 * lane + i] - zero)) * scale;
            }
        }
        at = record.end(shape);
    }
}

void read_outputs(const DualShape& shape, const uint8_t* packed, const int64_t* outputs, int64_t count,
                  float* out) {
    const auto read = shape.bits == 4 ? read_output<4> : read_output<3>;
    for_each_row(count, 4 * shape.width,
                 [&](int64_t row) { read(shape, packed, outputs[row], out + row * shape.width); });
}

}  // namespace

constinit const DualLinearTable dual_linear = {quantise, multiply, round, read_outputs};

}  // namespace headrace::HR_LEVEL
