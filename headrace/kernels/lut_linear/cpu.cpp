// lut_linear for processors. Compiled once per level. See kernel.h for the layout of packed weights.
//
// One rule keeps rows bit-identical whatever runs beside them: an output is the sum over groups, in order, of
// fma(float(integer sum), scale, sum so far). Integer sums are exact, so how they are cut does not matter.
//
// Bounds, per 64 outputs x 32 inputs at b bits: 256 b bytes read; 8 b r lookups of 64 bytes for r rows. Two
// of them take three instructions for what is looked up, whatever r, and to be added up two in the wide
// order, three in the narrow one, four where a plane there has no partner.
#if defined(HR_LEVEL_AVX512)
#include "lut_linear/wide.h"
#else
#include "lut_linear/narrow.h"
#endif

#include "lut_linear/pack.h"
#include "lut_linear/tables.h"

namespace headrace::HR_LEVEL {
namespace {

constexpr int64_t kPassRows = 128;  // whose tables are in memory at a time: half a megabyte per 1024 inputs

// function.template operator()<kBits>()
template <class Function>
void with_lut_bits(int bits, const Function& function) {
    switch (bits) {
        case 1:
            return function.template operator()<1>();
        case 2:
            return function.template operator()<2>();
        case 3:
            return function.template operator()<3>();
        default:
            return function.template operator()<4>();
    }
}

// Tables, what they are made of, and a scale and a sum for each group.
struct LutScratch {
    LutRows rows;
    float* x;

    LutScratch(const IntShape& shape, int64_t count) {
        const int64_t tables = count * shape.padded() * 4, numbers = count * shape.groups();
        auto* memory = static_cast<uint8_t*>(scratch(Scratch::call, 2 * tables + 8 * numbers));
        x = reinterpret_cast<float*>(memory + tables);
        float* scales = x + count * shape.padded();
        rows = {memory, scales, reinterpret_cast<int32_t*>(scales + numbers), count};
    }
};

void multiply_rows(const LutLinear& a) {
    with_lut_bits(a.shape.bits, [&]<int kBits>() {
        in_pieces(a.shape.blocks(), 1, [&](int64_t begin, int64_t end) {
            for (int64_t block = begin; block < end; ++block) multiply_block<kBits>(a, block);
        });
    });
}

void multiply(const IntShape& shape, const RowSource& source, int64_t rows, const uint8_t* packed,
              const ProductEnd& end) {
    for (int64_t first = 0; first < rows; first += kPassRows) {
        const int64_t count = rows - first < kPassRows ? rows - first : kPassRows;
        RowSource some = source;
        some.x += first * source.stride;
        ProductEnd part = end;
        part.out += first * end.outputs;
        if (end.add) part.add += first * end.outputs;
        const LutScratch room(shape, count);
        tabulate(shape, some, room.rows, room.x);
        multiply_rows({shape, room.rows, packed, part});
    }
}

void tabulate_alone(const IntShape& shape, const RowSource& source, const LutRows& rows) {
    void* x = scratch(Scratch::call, rows.rows * shape.padded() * 4);
    tabulate(shape, source, rows, static_cast<float*>(x));
}

// One output's weights in float32: a row of an embedding.
void read_output(const IntShape& shape, const uint8_t* packed, int64_t output, float* out) {
    const uint8_t* at = packed + output / kBlock * shape.block_bytes();
    const int64_t lane = output % kBlock;
    const float zero = shape.bits == 1 ? 0.5f : static_cast<float>(1 << (shape.bits - 1));
    float* const end = out + shape.width;
    for (int64_t g = 0; g < shape.groups(); ++g) {
        const LutRecord record(shape, at, g);
        const float scale = to_float(f16{record.scales[lane]});
        for (int64_t i = 0; i < record.inputs && out < end; ++i, ++out)
            *out = (static_cast<float>(read_code(shape.bits, record, lane, i)) - zero) * scale;
        at = record.end(shape);
    }
}

void read_outputs(const IntShape& shape, const uint8_t* packed, const int64_t* outputs, int64_t count,
                  float* out) {
    for_each_row(count, 4 * shape.width,
                 [&](int64_t row) { read_output(shape, packed, outputs[row], out + row * shape.width); });
}

}  // namespace

constinit const LutLinearTable lut_linear = {kWide, tabulate_alone, multiply, pack, round, read_outputs};

}  // namespace headrace::HR_LEVEL
