// int_linear for processors. Compiled once per level. See kernel.h for the layout of packed weights.
//
// One rule keeps rows bit-identical whatever runs beside them: an output is the sum over groups, in order, of
// fma(float(integer sum), scale, sum so far). Integer sums are exact, so how they are cut does not matter.
//
// Bounds, per 64 outputs x 32 inputs at b bits: 256 b bytes read; 32 r dot instructions of 64 products for r
// rows, or with tiles 32 r / 16 of 1024.
#include "int_linear/dots.h"
#include "int_linear/pack.h"
#include "int_linear/rows.h"
#if defined(HR_LEVEL_AMX)
#include "int_linear/tiles.h"
#endif

namespace headrace::HR_LEVEL {
namespace {

#if defined(HR_LEVEL_AMX)
constexpr int64_t kDirectRows = 64;

// Eight-bit codes need no unpacking, and then tiles are ahead from the second row on; with many rows, a block
// is read too often.
bool direct(const IntShape& shape, int64_t rows) {
    return shape.bits == 8 && rows > 1 && rows <= kDirectRows;
}
bool stepwise(const IntShape& shape, int64_t rows, int64_t few) {
    return rows > few || direct(shape, rows);
}
#else
bool stepwise(const IntShape&, int64_t rows, int64_t few) {
    return rows > few;
}
#endif

// One output's weights in float32: a row of an embedding.
template <int kBits>
void read_output(const IntShape& shape, const uint8_t* packed, int64_t output, float* out) {
    const uint8_t* at = packed + output / kBlock * shape.block_bytes();
    const int64_t tile = output % kBlock / kTile, lane = output % kTile;
    float* const end = out + shape.width;
    for (int64_t g = 0; g < shape.groups(); ++g) {
        const Record record(shape, at, g);
        float scales[kLanes];
        store(scales, load_f16(record.scales + tile * kTile));
        const float scale = scales[lane];
        const int zero = record.zeros ? record.zeros[tile * kTile + lane] : 1 << (kBits - 1);
        for (int64_t c = 0; c < record.count; ++c) {
            Bytes quad[kQuads];
            unpack<kBits>(record.chunks + (c * kTiles + tile) * 64 * kBits, quad);
            for (int64_t k = 0; k < kQuads; ++k) {
                uint8_t codes[64];
                store_bytes(codes, quad[k]);
                for (int64_t i = 0; i < 4 && out < end; ++i)
                    *out++ = static_cast<float>(codes[4 * lane + i] - zero) * scale;
            }
        }
        at = record.end(shape);
    }
}

template <int kBits>
void multiply_block(const IntLinear& a, int64_t block) {
    const int64_t rows = a.rows.rows;
#if defined(HR_LEVEL_AMX)
    if (direct(a.shape, rows)) return direct_rows(a, block);
#endif
    if (rows <= a.few) return dot_rows<Record, kBits, false>(a, block);
#if defined(HR_LEVEL_AMX)
    many_rows<kBits>(a, block);
#else
    dot_rows<Record, kBits, true>(a, block);
#endif
}

// function.template operator()<kBits>()
template <class Function>
void with_bits(int bits, const Function& function) {
    switch (bits) {
        case 1:
            return function.template operator()<1>();
        case 2:
            return function.template operator()<2>();
        case 3:
            return function.template operator()<3>();
        case 4:
            return function.template operator()<4>();
        case 5:
            return function.template operator()<5>();
        case 6:
            return function.template operator()<6>();
        case 7:
            return function.template operator()<7>();
        default:
            return function.template operator()<8>();
    }
}

void multiply(const IntLinear& a) {
    with_bits(a.shape.bits, [&]<int kBits>() {
        in_pieces(a.shape.blocks(), 1, [&](int64_t begin, int64_t end) {
            for (int64_t block = begin; block < end; ++block) multiply_block<kBits>(a, block);
        });
    });
}

void read_outputs(const IntShape& shape, const uint8_t* packed, const int64_t* outputs, int64_t count,
                  float* out) {
    with_bits(shape.bits, [&]<int kBits>() {
        for_each_row(count, 4 * shape.width, [&](int64_t row) {
            read_output<kBits>(shape, packed, outputs[row], out + row * shape.width);
        });
    });
}
}  // namespace

constinit const IntLinearTable int_linear = {stepwise, quantise, multiply, pack, round, read_outputs};

}  // namespace headrace::HR_LEVEL
