// bf16_linear for processors. Compiled once per level. See kernel.h for the layout of packed weights.
//
// An output is summed over its inputs in their order, pair by pair, whatever rows are beside it; how the two
// products of a pair are rounded is the instruction's business, so levels differ in the last bits.
//
// Bounds, per 64 outputs x 32 inputs: 4,096 bytes read; 64 r dot instructions of 32 products for r rows.
#include "bf16_linear/kernel.h"
#include "headrace/parallel.h"
#include "headrace/simd_int.h"
#include "headrace/transpose.h"
#if defined(HR_LEVEL_AMX)
#include "headrace/amx.h"
#endif

namespace headrace::HR_LEVEL {
namespace {

using Shape = Bf16Shape;
constexpr int64_t kPairs = Shape::kChunk / 2;

void read_rows(const Bf16Linear& a) {
    for_each_row(a.count, 4 * a.shape.width, [&](int64_t row) {
        const int64_t padded = a.shape.chunks() * Shape::kChunk;
        float* x = static_cast<float*>(scratch(Scratch::piece, padded * 4));
        for (int64_t i = a.shape.width / kLanes * kLanes; i < padded; ++i) x[i] = 0;
        read_row(a.source, row, a.shape.width, x);
        for (int64_t i = 0; i < padded; i += kLanes)
            store(a.rows + row * a.stride + i / Shape::kChunk * a.chunk_items + i % Shape::kChunk,
                  load(x + i));
    });
}

#if defined(HR_LEVEL_AMX)

constexpr int64_t kTileRows = 16;

// Thirty-two rows (or fewer) of one block, over all inputs: sums stay in tiles.
void multiply_rows(const Bf16Linear& a, const bf16* block, int64_t first, int64_t count, float* sums) {
    const int64_t bytes = a.stride * 2;
    const bool both = count > kTileRows;
    for (int64_t t = 0; t < Shape::kTiles; t += 2) {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
        const bf16* w = block + t * Shape::kTileItems;
        const bf16* x = a.rows + first * a.stride;
        for (int64_t c = 0; c < a.shape.chunks();
             ++c, w += Shape::kTiles * Shape::kTileItems, x += a.chunk_items) {
            for (int64_t line = 0; line < 2 * kPairs; ++line)
                prefetch(w + line * 32 + 2 * Shape::kTiles * Shape::kTileItems);
            _tile_loadd(4, x, bytes);
            _tile_loadd(6, w, 64);
            _tile_loadd(7, w + Shape::kTileItems, 64);
            _tile_dpbf16ps(0, 4, 6);
            _tile_dpbf16ps(1, 4, 7);
            if (both) {
                _tile_loadd(5, x + kTileRows * a.stride, bytes);
                _tile_dpbf16ps(2, 5, 6);
                _tile_dpbf16ps(3, 5, 7);
            }
        }
        constexpr int64_t kStride = Shape::kBlock * 4;
        _tile_stored(0, sums + t * Shape::kTile, kStride);
        _tile_stored(1, sums + (t + 1) * Shape::kTile, kStride);
        if (both) {
            _tile_stored(2, sums + kTileRows * Shape::kBlock + t * Shape::kTile, kStride);
            _tile_stored(3, sums + kTileRows * Shape::kBlock + (t + 1) * Shape::kTile, kStride);
        }
    }
}

void multiply_block(const Bf16Linear& a, int64_t block) {
    const bf16* w = a.packed + block * a.shape.block_items();
    alignas(64) float sums[2 * kTileRows * Shape::kBlock];
    const Tiles tiles(a.count < kTileRows ? a.count : kTileRows, 64);
    for (int64_t first = 0; first < a.count; first += 2 * kTileRows) {
        const int64_t count = a.count - first < 2 * kTileRows ? a.count - first : 2 * kTileRows;
        multiply_rows(a, w, first, count, sums);
        for (int64_t r = 0; r < count; ++r)
            for (int64_t t = 0; t < Shape::kTiles; ++t)
                write_outputs(a.end, first + r, block * Shape::kBlock + t * Shape::kTile,
                              load(sums + r * Shape::kBlock + t * Shape::kTile));
    }
}

#else

#if defined(HR_LEVEL_AVX512)
constexpr int kMostRows = 6, kAtOnce = 4;  // 24 registers of sums, 4 of weights
#else
constexpr int kMostRows = 4, kAtOnce = 1;
#endif
constexpr int64_t kAhead = 2048;  // items

// sum + the dot product of each output's pair with the pair `x`.
inline F32x16 dot_pair(F32x16 sum, const bf16* weights, const bf16* x) {
#if defined(HR_LEVEL_AVX512)
    const __m512bh w = (__m512bh)_mm512_loadu_si512(weights);
    int32_t pair;
    memcpy(&pair, x, sizeof pair);
    return {_mm512_dpbf16_ps(sum.v, w, (__m512bh)_mm512_set1_epi32(pair))};
#elif defined(HR_LEVEL_AVX2)
    const __m256i* p = reinterpret_cast<const __m256i*>(weights);
    const __m256i lo = _mm256_loadu_si256(p), hi = _mm256_loadu_si256(p + 1);
    const __m256i upper = _mm256_set1_epi32(static_cast<int>(0xffff0000));
    const F32x16 first = {_mm256_castsi256_ps(_mm256_slli_epi32(lo, 16)),
                          _mm256_castsi256_ps(_mm256_slli_epi32(hi, 16))};
    const F32x16 second = {_mm256_castsi256_ps(_mm256_and_si256(lo, upper)),
                           _mm256_castsi256_ps(_mm256_and_si256(hi, upper))};
    return fma(second, broadcast(to_float(x[1])), fma(first, broadcast(to_float(x[0])), sum));
#else
    F32x16 first, second;
    for (int64_t i = 0; i < kLanes; ++i) {
        first.lane[i] = to_float(weights[2 * i]);
        second.lane[i] = to_float(weights[2 * i + 1]);
    }
    return fma(second, broadcast(to_float(x[1])), fma(first, broadcast(to_float(x[0])), sum));
#endif
}

template <int kRows>
void multiply_rows(const Bf16Linear& a, int64_t block, int64_t first) {
    for (int64_t t = 0; t < Shape::kTiles; t += kAtOnce) {
        F32x16 sums[kRows][kAtOnce];
        for (int r = 0; r < kRows; ++r)
            for (int u = 0; u < kAtOnce; ++u) sums[r][u] = broadcast(0);
        const bf16* w = a.packed + block * a.shape.block_items() + t * Shape::kTileItems;
        const bf16* x = a.rows + first * a.stride;
        for (int64_t c = 0; c < a.shape.chunks();
             ++c, w += Shape::kTiles * Shape::kTileItems, x += a.chunk_items) {
            for (int64_t k = 0; k < kPairs; ++k) {
                for (int u = 0; u < kAtOnce; ++u) {
                    const bf16* pair = w + u * Shape::kTileItems + k * 2 * Shape::kTile;
                    if (first == 0) prefetch(pair + kAhead);
                    for (int r = 0; r < kRows; ++r)
                        sums[r][u] = dot_pair(sums[r][u], pair, x + r * a.stride + 2 * k);
                }
            }
        }
        for (int r = 0; r < kRows; ++r)
            for (int u = 0; u < kAtOnce; ++u)
                write_outputs(a.end, first + r, block * Shape::kBlock + (t + u) * Shape::kTile, sums[r][u]);
    }
}

void multiply_block(const Bf16Linear& a, int64_t block) {
    int64_t row = 0;
    for (; row + kMostRows <= a.count; row += kMostRows) multiply_rows<kMostRows>(a, block, row);
    for (; row + 2 <= a.count; row += 2) multiply_rows<2>(a, block, row);
    for (; row < a.count; ++row) multiply_rows<1>(a, block, row);
}

#endif

void multiply(const Bf16Linear& a) {
    read_rows(a);
    in_pieces(a.shape.blocks(), 1, [&](int64_t begin, int64_t end) {
        for (int64_t block = begin; block < end; ++block) multiply_block(a, block);
    });
}

// The next 32 inputs of one output, of which `count` exist.
template <class T>
inline void read_inputs(const T* weight, int64_t count, bf16* out) {
    for (int64_t i = 0; i < Shape::kChunk && i < count; i += kLanes) {
        const int64_t n = count - i;
        store(out + i, n >= kLanes ? load(weight + i) : load_first(weight + i, n));
    }
}
inline void read_inputs(const bf16* weight, int64_t count, bf16* out) {
    if (count >= Shape::kChunk) {
        memcpy(out, weight, Shape::kChunk * sizeof(bf16));
    } else {
        memcpy(out, weight, static_cast<size_t>(count) * sizeof(bf16));
    }
}

template <class T>
void pack_tile(const Shape& shape, const T* weight, int64_t tile, bf16* packed) {
    bf16* to = packed + tile / Shape::kTiles * shape.block_items() + tile % Shape::kTiles * Shape::kTileItems;
    const int64_t first = tile * Shape::kTile, rest = shape.outputs - first;
    for (int64_t i = 0; i < shape.width; i += Shape::kChunk, to += Shape::kTiles * Shape::kTileItems) {
        bf16 rows[Shape::kTile][Shape::kChunk] = {};
        for (int64_t o = 0; o < Shape::kTile && o < rest; ++o)
            read_inputs(weight + (first + o) * shape.width + i, shape.width - i, rows[o]);
        uint32_t pairs[kPairs][Shape::kTile];
        transpose(rows, sizeof rows[0], pairs);
        memcpy(to, pairs, sizeof pairs);
    }
}

void pack(const Shape& shape, const Floats& weight, bf16* packed) {
    with_type(weight, [&](const auto* rows) {
        in_pieces(shape.blocks() * Shape::kTiles, 1, [&](int64_t begin, int64_t end) {
            for (int64_t tile = begin; tile < end; ++tile) pack_tile(shape, rows, tile, packed);
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

constinit const Bf16LinearTable bf16_linear = {multiply, pack, read_outputs};

}  // namespace headrace::HR_LEVEL
