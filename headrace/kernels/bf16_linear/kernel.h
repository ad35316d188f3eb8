// bf16_linear: what cpu.cpp offers at each level, and bind.cpp calls.
//
// Packed weights, [outputs, width] of bfloat16, are one run of numbers that a product reads front to back:
//
//   block   64 outputs                blocks of outputs, the last one padded with zeros
//     chunk   32 inputs               the last one padded with zeros
//       tile    16 outputs            [16 pairs of inputs][16 outputs][2]: a register is one pair of each
//       output
#pragma once

#include <stdint.h>

#include "headrace/floats.h"
#include "headrace/level.h"
#include "headrace/product.h"

namespace headrace {

struct Bf16Shape {
    static constexpr int64_t kBlock = 64, kTile = 16, kTiles = 4, kChunk = 32;
    static constexpr int64_t kTileItems = kTile * kChunk;

    int64_t width, outputs;

    int64_t blocks() const { return (outputs + kBlock - 1) / kBlock; }
    int64_t chunks() const { return (width + kChunk - 1) / kChunk; }
    int64_t block_items() const { return chunks() * kTiles * kTileItems; }
};

// A product but for its weights, which may lie in memory in another form (dfloat_linear).
struct Bf16Rows {
    Bf16Shape shape;
    RowSource source;
    // Room for the rows: input i of one lies at row * stride + i / 32 * chunk_items + i % 32: chunk by chunk,
    // [chunks][rows][32].
    void* rows;
    int64_t count, stride, chunk_items;
    ProductEnd end;
};

struct Bf16Linear : Bf16Rows {
    const bf16* packed;
};

struct Bf16LinearTable {
    int64_t row_item_bytes;  // rows are rounded to bfloat16; who multiplies floats keeps them as such
    void (*multiply)(const Bf16Linear&);
    void (*pack)(const Bf16Shape&, const Floats& weight, bf16* packed);
    void (*read_outputs)(const Bf16Shape&, const bf16* packed, const int64_t* outputs, int64_t count,
                         float* out);
};

HR_TABLE(Bf16LinearTable, bf16_linear)

}  // namespace headrace
