// int_linear for processors. Compiled once per level. See kernel.h for the layout of packed weights.
//
// One rule keeps rows bit-identical whatever runs beside them: an output is the sum over groups, in order, of
// fma(float(integer sum), scale, sum so far). Integer sums are exact, so how they are cut does not matter.
//
// Bounds, per 64 outputs x 32 inputs at b bits: 256 b bytes read; 32 r dot instructions of 64 products for r
// rows.
#include "headrace/norm.h"
#include "headrace/parallel.h"
#include "headrace/simd_int.h"
#include "headrace/simd_math.h"
#include "int_linear/kernel.h"
#if defined(HR_LEVEL_AMX)
#include "headrace/amx.h"
#endif

namespace headrace::HR_LEVEL {
namespace {

#if defined(HR_LEVEL_AVX512)
constexpr int kPanelRows = 6, kPanelTiles = 4;  // 24 sums, 4 registers of weights
#elif defined(HR_LEVEL_AVX2)
constexpr int kPanelRows = 4, kPanelTiles = 1;  // 8 registers of sums, 2 of weights, 4 of scratch
#else
constexpr int kPanelRows = 4, kPanelTiles = 1;
#endif
constexpr int64_t kTiles = kBlock / kTile;
constexpr int64_t kFewRows = 8;     // up to here codes are unpacked in registers, for each row count anew
constexpr int64_t kPassRows = 384;  // rows per pass over a block: their sums stay in the second-level cache
constexpr int64_t kAhead = 4096;    // bytes

// ---- rows ----

void read_row(const RowSource& source, int64_t row, int64_t width, float* out) {
    const float* x = source.x + row * source.stride;
    const float scale = source.before == Before::rms_norm ? norm_scale(x, width, source.eps) : 1.0f;
    for (int64_t i = 0; i < width; i += kLanes) {
        const int64_t n = width - i < kLanes ? width - i : kLanes;
        F32x16 v = n == kLanes ? load(x + i) : load_first(x + i, n);
        if (source.before == Before::rms_norm) {
            const float* w = source.weight + i;
            const F32x16 weight = n == kLanes ? load(w) : load_first(w, n);
            v = v * broadcast(scale) * (weight + broadcast(source.weight_offset));
        } else if (source.before != Before::nothing) {
            const F32x16 up = n == kLanes ? load(x + width + i) : load_first(x + width + i, n);
            v = (source.before == Before::silu_gate ? silu(v) : gelu_tanh(v)) * up;
        }
        store(out + i, v);  // the buffer is padded
    }
}

float largest_magnitude(const float* x, int64_t padded) {
    F32x16 most = broadcast(0);
    for (int64_t i = 0; i < padded; i += kLanes) most = max(magnitude(load(x + i)), most);
    return largest(most);
}

void quantise_row(const IntShape& shape, const float* x, const IntRows& rows, int64_t row) {
    const int64_t padded = shape.padded(), groups = shape.groups();
    const float most = largest_magnitude(x, padded);
    const F32x16 factor = broadcast(most > 0 ? 127.0f / most : 0.0f);
    int8_t* codes = rows.codes + row * padded;
    int64_t i = 0;
    for (int64_t g = 0; g < groups; ++g) {
        I32x16 total = all_lanes(0);
        const int64_t end = i + shape.group_chunks(g) * kChunk;
        for (; i < end; i += kLanes) {
            const I32x16 code = nearest(load(x + i) * factor);
            store_i8(codes + i, code);
            total = total + code;
        }
        rows.sums[row * groups + g] = sum(total);
    }
    rows.scales[row] = most / 127.0f;
}

void quantise(const IntShape& shape, const RowSource& source, const IntRows& rows) {
    for_each_row(rows.rows, 4 * shape.padded(), [&](int64_t row) {
        float* x = static_cast<float*>(scratch(Scratch::piece, shape.padded() * 4));
        for (int64_t i = shape.width / kLanes * kLanes; i < shape.padded(); ++i) x[i] = 0;
        read_row(source, row, shape.width, x);
        quantise_row(shape, x, rows, row);
    });
}

// ---- codes ----

// `kWidth` bits of every byte, moved from bit kFrom to bit kTo.
template <int kFrom, int kTo, int kWidth>
inline Bytes moved(Bytes x) {
    constexpr int kMask = ((1 << kWidth) - 1) << kTo;
    if constexpr (kFrom >= kTo) return field<kFrom - kTo, kMask>(x);
    if constexpr (kFrom < kTo) return raised<kTo - kFrom, kMask>(x);
}

// One quad of a tile, put together from its planes.
template <int kBits, int kQuad>
inline Bytes quad_of(const uint8_t* p) {
    if constexpr (kBits == 8) return load_bytes(p + 64 * kQuad);
    constexpr int kHas4 = kBits & 4, kHas2 = kBits & 2;
    const uint8_t* p2 = p + 64 * kHas4;
    const uint8_t* p1 = p2 + 64 * kHas2;
    Bytes out{};
    if constexpr (kHas4) out = moved<kQuad / 4 * 4, 0, 4>(load_bytes(p + kQuad % 4 * 64));
    if constexpr (kHas2) out = out | moved<kQuad / 2 * 2, kHas4, 2>(load_bytes(p2 + kQuad % 2 * 64));
    if constexpr (kBits & 1) out = out | moved<kQuad, kHas4 + kHas2, 1>(load_bytes(p1));
    return out;
}

// The eight quads of one tile of one chunk.
template <int kBits>
inline void unpack(const uint8_t* p, Bytes (&quad)[kQuads]) {
    quad[0] = quad_of<kBits, 0>(p);
    quad[1] = quad_of<kBits, 1>(p);
    quad[2] = quad_of<kBits, 2>(p);
    quad[3] = quad_of<kBits, 3>(p);
    quad[4] = quad_of<kBits, 4>(p);
    quad[5] = quad_of<kBits, 5>(p);
    quad[6] = quad_of<kBits, 6>(p);
    quad[7] = quad_of<kBits, 7>(p);
}

// One group of one block: where its parts lie, and what its sums start from.
struct Record {
    const uint16_t* scales;
    const uint8_t* zeros;  // null: every zero point is 2^(bits-1)
    const uint8_t* chunks;
    int64_t count;  // of chunks

    Record(const IntShape& shape, const uint8_t* at, int64_t group)
        : scales(reinterpret_cast<const uint16_t*>(at)),
          zeros(shape.zeros ? at + 2 * kBlock : nullptr),
          chunks(at + shape.head_bytes()),
          count(shape.group_chunks(group)) {}

    const uint8_t* end(const IntShape& shape) const { return chunks + count * shape.chunk_bytes(); }
};

uint8_t* tile_bytes(const IntShape& shape, uint8_t* block, int64_t group, int64_t chunk, int64_t tile) {
    return block + (group + 1) * shape.head_bytes() + chunk * shape.chunk_bytes() + tile * 64 * shape.bits;
}

// Where the four codes of output `lane` in quad `k` go: the planes of `unpack`, written one code at a time.
void put_code(const IntShape& shape, uint8_t* tile, int64_t k, int64_t byte, uint8_t code) {
    const int has4 = shape.bits & 4, has2 = shape.bits & 2;
    if (shape.bits == 8) {
        tile[64 * k + byte] = code;
        return;
    }
    if (has4) tile[k % 4 * 64 + byte] |= static_cast<uint8_t>((code & 15) << k / 4 * 4);
    if (has2) tile[64 * has4 + k % 2 * 64 + byte] |= static_cast<uint8_t>((code >> has4 & 3) << k / 2 * 2);
    if (shape.bits & 1)
        tile[64 * (has4 + has2) + byte] |= static_cast<uint8_t>((code >> (has4 + has2) & 1) << k);
}

// Scales and zero points of one group; outputs that do not exist get 0.
void pack_head(const IntShape& shape, const IntCodes& from, int64_t first, int64_t g, uint8_t* head) {
    for (int64_t o = 0; o < kBlock; ++o) {
        const int64_t at = (first + o) * shape.groups() + g;
        const bool exists = first + o < shape.outputs;
        const uint16_t scale = exists ? from.scales[at] : uint16_t{0};
        memcpy(head + 2 * o, &scale, sizeof scale);
        if (shape.zeros) head[2 * kBlock + o] = exists ? from.zeros[at] : uint8_t{0};
    }
}

void pack_block(const IntShape& shape, const IntCodes& from, int64_t first, uint8_t* block) {
    uint8_t* record = block;
    for (int64_t g = 0, chunk = 0; g < shape.groups(); ++g) {
        pack_head(shape, from, first, g, record);
        record += shape.head_bytes() + shape.group_chunks(g) * shape.chunk_bytes();
        for (const int64_t end = chunk + shape.group_chunks(g); chunk < end; ++chunk) {
            for (int64_t t = 0; t < kTiles; ++t) {
                uint8_t* tile = tile_bytes(shape, block, g, chunk, t);
                memset(tile, 0, static_cast<size_t>(64 * shape.bits));
                for (int64_t lane = 0, o = first + t * kTile; lane < kTile && o < shape.outputs;
                     ++lane, ++o) {
                    const uint8_t* row = from.codes + o * shape.width;
                    for (int64_t i = chunk * kChunk; i < (chunk + 1) * kChunk && i < shape.width; ++i)
                        put_code(shape, tile, i % kChunk / 4, lane * 4 + i % 4, row[i]);
                }
            }
        }
    }
}

void pack(const IntShape& shape, const IntCodes& from, uint8_t* packed) {
    in_pieces(shape.blocks(), 1, [&](int64_t begin, int64_t end) {
        for (int64_t b = begin; b < end; ++b)
            pack_block(shape, from, b * kBlock, packed + b * shape.block_bytes());
    });
}

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

// ---- products ----

// sum (code - zero) * a = sum code * a - zero * sum a: the second part is where the sum starts.
template <int kBits>
inline I32x16 start(const Record& record, int64_t tile, int32_t row_sum) {
    if (!record.zeros) return all_lanes(-(1 << (kBits - 1)) * row_sum);
    return load_u8(record.zeros + tile * kTile) * all_lanes(-row_sum);
}

inline F32x16 add_group(F32x16 total, I32x16 group, const Record& record, int64_t tile) {
    return fma(to_float(group), load_f16(record.scales + tile * kTile), total);
}

void finish(const IntLinear& a, int64_t block, int64_t row, const float* totals) {
    const F32x16 scale = broadcast(a.rows.scales[row]);
    for (int64_t t = 0; t < kTiles; ++t) {
        const int64_t first = block * kBlock + t * kTile, at = row * a.shape.outputs + first;
        const int64_t n = a.shape.outputs - first < kTile ? a.shape.outputs - first : kTile;
        if (n <= 0) return;
        const bool whole = n == kTile;
        F32x16 y = load(totals + t * kTile) * scale;
        if (a.bias) y = y + (whole ? load(a.bias + first) : load_first(a.bias + first, n));
        if (a.add) y = y + (whole ? load(a.add + at) : load_first(a.add + at, n));
        whole ? store(a.out + at, y) : store_first(a.out + at, y, n);
    }
}

// Few rows: every code is read from memory once, unpacked in registers, and used by all rows.
template <int kBits, int kRows>
void few_rows(const IntLinear& a, int64_t block, int64_t first_row) {
    constexpr int kAtOnce = kRows == 1   ? 4
                            : kRows == 2 ? 2
                                         : 1;  // tiles whose sums are in registers together
    const IntShape& shape = a.shape;
    const int8_t* codes[kRows];
    const int32_t* sums[kRows];
    for (int r = 0; r < kRows; ++r) {  // rows beyond the last one repeat it, and are dropped
        const int64_t row = first_row + r < a.rows.rows ? first_row + r : a.rows.rows - 1;
        codes[r] = a.rows.codes + row * shape.padded();
        sums[r] = a.rows.sums + row * shape.groups();
    }
    alignas(64) float totals[kRows][kBlock] = {};
    const uint8_t* at = a.packed + block * shape.block_bytes();
    for (int64_t g = 0, input = 0; g < shape.groups(); ++g) {
        const Record record(shape, at, g);
        for (int64_t t = 0; t < kTiles; t += kAtOnce) {
            I32x16 sum[kRows][kAtOnce];
            for (int r = 0; r < kRows; ++r)
                for (int u = 0; u < kAtOnce; ++u) sum[r][u] = start<kBits>(record, t + u, sums[r][g]);
            for (int64_t c = 0; c < record.count; ++c) {
                const uint8_t* chunk = record.chunks + c * 4 * 64 * kBits + t * 64 * kBits;
                for (int u = 0; u < kAtOnce; ++u) {
                    for (int line = 0; line < kBits; ++line)
                        prefetch(chunk + 64 * (u * kBits + line) + kAhead);
                    Bytes quad[kQuads];
                    unpack<kBits>(chunk + u * 64 * kBits, quad);
                    for (int k = 0; k < kQuads; ++k)
                        for (int r = 0; r < kRows; ++r)
                            sum[r][u] = dot<kBits>(sum[r][u], quad[k],
                                                   load_four(codes[r] + input + c * kChunk + 4 * k));
                }
            }
            for (int r = 0; r < kRows; ++r) {
                for (int u = 0; u < kAtOnce; ++u) {
                    float* total = totals[r] + (t + u) * kTile;
                    store(total, add_group(load(total), sum[r][u], record, t + u));
                }
            }
        }
        input += record.count * kChunk;
        at = record.end(shape);
    }
    for (int r = 0; r < kRows && first_row + r < a.rows.rows; ++r) finish(a, block, first_row + r, totals[r]);
}

// Many rows: a group's codes are unpacked once, quad after quad of all four tiles, and stay in the cache.
// After an odd number of chunks comes one of zeros: a step of tiles takes two.
template <int kBits>
void unpack_panel(const Record& record, uint8_t* panel) {
#if defined(HR_LEVEL_AMX)
    if (record.count % 2) memset(panel + record.count * kChunk * kBlock, 0, kChunk * kBlock);
#endif
    for (int64_t c = 0; c < record.count; ++c) {
        for (int64_t t = 0; t < kTiles; ++t) {
            const uint8_t* tile = record.chunks + (c * kTiles + t) * 64 * kBits;
            for (int line = 0; line < kBits; ++line) prefetch(tile + 64 * line + kAhead);
            Bytes quad[kQuads];
            unpack<kBits>(tile, quad);
            for (int k = 0; k < kQuads; ++k)
                store_bytes(panel + ((c * kQuads + k) * kTiles + t) * 64, quad[k]);
        }
    }
}

template <int kBits>
inline void panel_rows(const Record& record, const uint8_t* panel, const int8_t* const (&codes)[kPanelRows],
                       const int32_t (&row_sums)[kPanelRows], float* totals) {
    for (int64_t t = 0; t < kTiles; t += kPanelTiles) {
        I32x16 sum[kPanelRows][kPanelTiles];
        for (int r = 0; r < kPanelRows; ++r)
            for (int u = 0; u < kPanelTiles; ++u) sum[r][u] = start<kBits>(record, t + u, row_sums[r]);
        const uint8_t* p = panel + t * 64;
        for (int64_t k = 0; k < record.count * kQuads; ++k, p += kTiles * 64) {
            Bytes quad[kPanelTiles];
            for (int u = 0; u < kPanelTiles; ++u) quad[u] = load_bytes(p + 64 * u);
            for (int r = 0; r < kPanelRows; ++r) {
                const int32_t four = load_four(codes[r] + 4 * k);
                for (int u = 0; u < kPanelTiles; ++u) sum[r][u] = dot<kBits>(sum[r][u], quad[u], four);
            }
        }
        for (int r = 0; r < kPanelRows; ++r) {
            for (int u = 0; u < kPanelTiles; ++u) {
                float* total = totals + r * kBlock + (t + u) * kTile;
                store(total, add_group(load(total), sum[r][u], record, t + u));
            }
        }
    }
}

// Rows [first, first + count) of one group: totals += scale * (integer product). `codes` and `row_sums` point
// at the group's part of the first row.
#if defined(HR_LEVEL_AMX)

constexpr int64_t kTileRows = 16;

// Two tiles of outputs: sums of `rows` rows to totals. sums: [rows][32].
template <int kBits>
inline void add_tiles(const Record& record, int64_t t, const int32_t* sums, int64_t rows,
                      const int32_t* row_sums, int64_t groups, float* totals) {
    const F32x16 scale[2] = {load_f16(record.scales + t * kTile), load_f16(record.scales + (t + 1) * kTile)};
    for (int64_t r = 0; r < rows; ++r) {
        for (int u = 0; u < 2; ++u) {
            const I32x16 sum = load_i32(sums + r * 2 * kTile + u * kTile) +
                               start<kBits>(record, t + u, row_sums[r * groups]);
            float* total = totals + r * kBlock + (t + u) * kTile;
            store(total, fma(to_float(sum), scale[u], load(total)));
        }
    }
}

template <int kBits>
void group_rows(const IntShape& shape, const Record& record, const uint8_t* panel, const int8_t* codes,
                const int32_t* row_sums, int64_t count, float* totals) {
    const int64_t steps = (record.count + 1) / 2, stride = shape.padded(), panel_stride = kTiles * 64;
    alignas(64) int32_t sums[2 * kTileRows * 2 * kTile];
    constexpr int64_t kSumStride = 2 * kTile * 4;
    for (int64_t row = 0; row < count; row += 2 * kTileRows) {
        const int8_t* a = codes + row * stride;
        const bool both = count - row > kTileRows;
        for (int64_t t = 0; t < kTiles; t += 2) {
            _tile_zero(0);
            _tile_zero(1);
            _tile_zero(2);
            _tile_zero(3);
            for (int64_t s = 0; s < steps; ++s) {
                const uint8_t* b = panel + s * 16 * panel_stride + t * 64;
                _tile_loadd(4, a + s * 64, stride);
                _tile_loadd(6, b, panel_stride);
                _tile_loadd(7, b + 64, panel_stride);
                _tile_dpbsud(0, 4, 6);
                _tile_dpbsud(1, 4, 7);
                if (both) {
                    _tile_loadd(5, a + kTileRows * stride + s * 64, stride);
                    _tile_dpbsud(2, 5, 6);
                    _tile_dpbsud(3, 5, 7);
                }
            }
            _tile_stored(0, sums, kSumStride);
            _tile_stored(1, sums + kTile, kSumStride);
            if (both) {
                _tile_stored(2, sums + kTileRows * 2 * kTile, kSumStride);
                _tile_stored(3, sums + kTileRows * 2 * kTile + kTile, kSumStride);
            }
            const int64_t rows = count - row < 2 * kTileRows ? count - row : 2 * kTileRows;
            add_tiles<kBits>(record, t, sums, rows, row_sums + row * shape.groups(), shape.groups(),
                             totals + row * kBlock);
        }
    }
}

#else

template <int kBits>
void group_rows(const IntShape& shape, const Record& record, const uint8_t* panel, const int8_t* codes,
                const int32_t* row_sums, int64_t count, float* totals) {
    for (int64_t row = 0; row < count; row += kPanelRows) {
        const int8_t* a[kPanelRows];
        int32_t sums[kPanelRows];
        for (int64_t r = 0; r < kPanelRows; ++r) {  // rows beyond the last one repeat it, and are dropped
            const int64_t from = row + r < count ? row + r : count - 1;
            a[r] = codes + from * shape.padded();
            sums[r] = row_sums[from * shape.groups()];
        }
        panel_rows<kBits>(record, panel, a, sums, totals + row * kBlock);
    }
}

#endif

template <int kBits>
void many_rows(const IntLinear& a, int64_t block, int64_t first_row, int64_t count) {
    const IntShape& shape = a.shape;
    const int64_t padded_rows = (count + kPanelRows - 1) / kPanelRows * kPanelRows;
    const int64_t panel_bytes = (shape.group_chunks(0) + 1) * kChunk * kBlock;
#if defined(HR_LEVEL_AMX)
    const Tiles tiles(count < kTileRows ? count : kTileRows);
#endif
    uint8_t* panel = static_cast<uint8_t*>(scratch(Scratch::piece, panel_bytes + padded_rows * kBlock * 4));
    float* totals = reinterpret_cast<float*>(panel + panel_bytes);
    memset(totals, 0, static_cast<size_t>(padded_rows * kBlock * 4));
    const uint8_t* at = a.packed + block * shape.block_bytes();
    for (int64_t g = 0, input = 0; g < shape.groups(); ++g) {
        const Record record(shape, at, g);
        unpack_panel<kBits>(record, panel);
        group_rows<kBits>(shape, record, panel, a.rows.codes + first_row * shape.padded() + input,
                          a.rows.sums + first_row * shape.groups() + g, count, totals);
        input += record.count * kChunk;
        at = record.end(shape);
    }
    for (int64_t row = 0; row < count; ++row) finish(a, block, first_row + row, totals + row * kBlock);
}

template <int kBits>
void multiply_block(const IntLinear& a, int64_t block) {
    const int64_t rows = a.rows.rows;
    if (rows > kFewRows) {
        for (int64_t row = 0; row < rows; row += kPassRows)
            many_rows<kBits>(a, block, row, rows - row < kPassRows ? rows - row : kPassRows);
    } else if (rows == 1) {
        few_rows<kBits, 1>(a, block, 0);
    } else if (rows == 2) {
        few_rows<kBits, 2>(a, block, 0);
    } else if (rows <= 4) {
        few_rows<kBits, 4>(a, block, 0);
    } else {
        few_rows<kBits, 8>(a, block, 0);
    }
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

constinit const IntLinearTable int_linear = {quantise, multiply, pack, read_outputs};

}  // namespace headrace::HR_LEVEL
