// bf16_linear for processors. Compiled once per level. See kernel.h for the layout of packed weights.
//
// An output is summed over its inputs in their order, pair by pair, whatever rows are beside it; how the two
// products of a pair are rounded is the instruction's business, so levels differ in the last bits.
//
// Bounds, per 64 outputs x 32 inputs: 4,096 bytes read; 64 r dot instructions of 32 products for r rows.
#include "bf16_linear/block.h"
#include "bf16_linear/pack.h"
#include "headrace/parallel.h"

namespace headrace::HR_LEVEL {
namespace {

void multiply(const Bf16Linear& a) {
    read_rows(a);
    in_pieces(a.shape.blocks(), 1, [&](int64_t begin, int64_t end) {
        for (int64_t block = begin; block < end; ++block) {
            const Packed weights{a.packed + block * a.shape.block_items()};
            multiply_block(a, weights, block);
        }
    });
}

void pack(const Shape& shape, const Floats& weight, bf16* packed) {
    with_type(weight, [&](const auto* rows) {
        in_pieces(shape.blocks() * Shape::kTiles, 1, [&](int64_t begin, int64_t end) {
            for (int64_t tile = begin; tile < end; ++tile)
                pack_tile(shape, rows, tile, packed + tile / Shape::kTiles * shape.block_items());
        });
    });
}

void read_outputs(const Bf16Shape& shape, const bf16* packed, const int64_t* outputs, int64_t count,
                  float* out) {
    for_each_row(count, 4 * shape.width, [&](int64_t row) {
        const int64_t output = outputs[row];
        const bf16* at = packed + output / Shape::kBlock * shape.block_items() +
                         output % Shape::kBlock / Shape::kTile * Shape::kTileItems +
                         output % Shape::kTile * 2;
        for (int64_t i = 0; i < shape.width; ++i)
            out[row * shape.width + i] = to_float(at[i / Shape::kChunk * Shape::kTiles * Shape::kTileItems +
                                                     i % Shape::kChunk / 2 * 32 + i % 2]);
    });
}

}  // namespace

constinit const Bf16LinearTable bf16_linear = {sizeof(RowItem), multiply, pack, read_outputs};

}  // namespace headrace::HR_LEVEL
