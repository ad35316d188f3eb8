// dfloat_linear for processors. Compiled once per level. See kernel.h for the layout of packed weights.
//
// A few chunks of a block are decoded and multiplied while they are in the cache, by bf16_linear's loops: the
// same bits as bf16_linear on the same level.
//
// Bounds, per 64 outputs x 32 inputs: 2,816 bytes read, and 2 per escape.
#include "bf16_linear/block.h"
#include "dfloat_linear/decode.h"
#include "dfloat_linear/pack.h"
#include "headrace/parallel.h"

namespace headrace::HR_LEVEL {
namespace {

bf16* room_for(int64_t chunks) {
    return static_cast<bf16*>(scratch(Scratch::piece, chunks * DfloatShape::kChunkItems * 2));
}

// Pieces on other threads say so if they find escapes damaged.
inline void note(const Decoded& weights, int* damaged) {
    if (!weights.whole()) __atomic_store_n(damaged, 1, __ATOMIC_RELAXED);
}

bool multiply(const DfloatLinear& a) {
    int damaged = 0;
    read_rows(a);
    in_pieces(a.shape.blocks(), 1, [&](int64_t begin, int64_t end) {
        bf16* room = room_for(most_chunks<Decoded>(a.shape));
        for (int64_t block = begin; block < end; ++block) {
            Decoded weights(a.weight, block, room);
            multiply_block(a, weights, block);
            note(weights, &damaged);
        }
    });
    return !damaged;
}

void pack(const DfloatShape& shape, const Floats& weight, uint8_t* planes, uint8_t* escapes, int64_t* sizes) {
    with_type(weight, [&](const auto* rows) {
        in_pieces(shape.blocks(), 1, [&](int64_t begin, int64_t end) {
            for (int64_t block = begin; block < end; ++block)
                pack_block(shape, rows, block, planes + block * shape.block_bytes(),
                           escapes + block * shape.chunks() * DfloatShape::kMostEscapeBytes, sizes + block);
        });
    });
}

// Whole chunks are decoded for one output: an embedding looks up a few, and that costs less than finding its
// escapes.
bool read_outputs(const DfloatWeight& weight, const int64_t* outputs, int64_t count, float* out) {
    int damaged = 0;
    const DfloatShape& shape = weight.shape;
    for_each_row(count, Shape::kBlock * shape.width, [&](int64_t row) {
        Decoded weights(weight, outputs[row] / Shape::kBlock, room_for(1));
        const int64_t output = outputs[row] % Shape::kBlock;
        const int64_t at = output / Shape::kTile * Shape::kTileItems + output % Shape::kTile * 2;
        float* to = out + row * shape.width;
        for (int64_t c = 0; c < shape.chunks(); ++c) {
            const bf16* chunk = weights.chunks(c, 1) + at;
            for (int64_t i = 0; i < Shape::kChunk && c * Shape::kChunk + i < shape.width; ++i)
                *to++ = to_float(chunk[i / 2 * 2 * Shape::kTile + i % 2]);
        }
        note(weights, &damaged);
    });
    return !damaged;
}

}  // namespace

constinit const DfloatLinearTable dfloat_linear = {sizeof(RowItem), multiply, pack, read_outputs};

}  // namespace headrace::HR_LEVEL
