// Many rows by matrix tiles (AMX): one instruction multiplies 16 rows by 16 outputs over 64 inputs.
//
// Codes are centred when they are unpacked (code - zero, a signed byte), so that a product needs no
// correction. The rows' codes lie step by step, [inputs / step][rows][step]: a tile of them is one kilobyte
// in a row.
#pragma once

#include "headrace/amx.h"
#include "headrace/parallel.h"
#include "int_linear/codes.h"

namespace headrace::HR_LEVEL {
namespace {

constexpr int64_t kTileRows = 16;
constexpr int64_t kTilePass = 128;  // rows per pass over a block: their sums stay in the first-level cache

// 8-bit codes with a zero point do not fit in a signed byte once centred.
template <int kBits>
inline bool centred(const IntShape& shape) {
    return kBits < 8 || !shape.zeros;
}

// A group's codes, tile by tile of outputs: [4][inputs / 4][16][4]. Whole steps: what is missing is 0.
// Read in the order of memory: the processor's own prefetching follows nothing else.
template <int kBits>
void unpack_tiles(const IntShape& shape, const Record& record, int64_t tile_bytes, uint8_t* panel) {
    Bytes zero[kTiles] = {};
    for (int64_t t = 0; t < kTiles && centred<kBits>(shape); ++t)
        zero[t] = record.zeros ? four_times(load_u8(record.zeros + t * kTile)) : all_bytes(1 << (kBits - 1));
    for (int64_t c = 0; c < record.count; ++c) {
        for (int64_t t = 0; t < kTiles; ++t) {
            const uint8_t* tile = record.chunks + (c * kTiles + t) * 64 * kBits;
            Bytes quad[kQuads];
            unpack<kBits>(tile, quad);
            uint8_t* out = panel + t * tile_bytes + c * kQuads * 64;
            for (int k = 0; k < kQuads; ++k) store_bytes(out + 64 * k, quad[k] - zero[t]);
        }
    }
    const int64_t filled = record.count * kQuads * 64;
    for (int64_t t = 0; t < kTiles && filled < tile_bytes; ++t)
        memset(panel + t * tile_bytes + filled, 0, static_cast<size_t>(tile_bytes - filled));
}

// Fetches what the next groups are unpacked from, a little with every row that is added up: all at once would
// find no free slots, and wait for them while the tiles have nothing to do.
struct Ahead {
    const uint8_t* next;
    int64_t lines;  // with each row

    Ahead(const uint8_t* from, int64_t bytes, int64_t rows)
        : next(from), lines(rows > 0 ? (bytes / 64 + 2 * rows - 1) / (2 * rows) : 0) {}
    void fetch() {
        for (int64_t i = 0; i < lines; ++i, next += 64) prefetch(next);
    }
};

// Where the products of 32 rows (or fewer) and 32 outputs are left until their turn comes.
struct Products {
    alignas(64) int32_t sums[2 * kTileRows * 2 * kTile];
};

template <bool kSigned>
inline void multiply_tiles(const int8_t* a, int64_t step, int64_t step_bytes, const uint8_t* b,
                           int64_t tile_bytes, int64_t steps, bool both, Products& out) {
    constexpr int64_t kStride = 2 * kTile * 4;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t s = 0; s < steps; ++s, a += step_bytes, b += step * kTile) {
        _tile_loadd(4, a, step);
        _tile_loadd(6, b, 64);
        _tile_loadd(7, b + tile_bytes, 64);
        if constexpr (kSigned) {
            _tile_dpbssd(0, 4, 6);
            _tile_dpbssd(1, 4, 7);
        } else {
            _tile_dpbsud(0, 4, 6);
            _tile_dpbsud(1, 4, 7);
        }
        if (both) {
            _tile_loadd(5, a + kTileRows * step, step);
            if constexpr (kSigned) {
                _tile_dpbssd(2, 5, 6);
                _tile_dpbssd(3, 5, 7);
            } else {
                _tile_dpbsud(2, 5, 6);
                _tile_dpbsud(3, 5, 7);
            }
        }
    }
    _tile_stored(0, out.sums, kStride);
    _tile_stored(1, out.sums + kTile, kStride);
    if (both) {
        _tile_stored(2, out.sums + kTileRows * 2 * kTile, kStride);
        _tile_stored(3, out.sums + kTileRows * 2 * kTile + kTile, kStride);
    }
}

// totals += scale * products, for outputs t * 16 .. + 32.
template <int kBits, bool kSigned>
inline void add_products(const Record& record, int64_t t, const Products& products, int64_t rows,
                         const int32_t* row_sums, int64_t groups, float* totals, Ahead& ahead) {
    const F32x16 scale[2] = {load_f16(record.scales + t * kTile), load_f16(record.scales + (t + 1) * kTile)};
    for (int64_t r = 0; r < rows; ++r) {
        ahead.fetch();
        for (int u = 0; u < 2; ++u) {
            I32x16 sum = load_i32(products.sums + r * 2 * kTile + u * kTile);
            if constexpr (!kSigned) sum = sum + start<kBits>(record, t + u, row_sums[r * groups]);
            float* total = totals + r * kBlock + (t + u) * kTile;
            store(total, fma(to_float(sum), scale[u], load(total)));
        }
    }
}

// One group of two steps, for sixteen rows or more: the weights of 32 outputs stay in tiles while all rows
// pass, which halves the loads, and loads are what tiles wait for.
template <int kBits, bool kSigned>
void group_rows_resident(const IntLinear& a, const Record& record, const uint8_t* panel, int64_t tile_bytes,
                         const int8_t* codes, const int32_t* row_sums, int64_t count, float* totals,
                         Ahead& ahead) {
    constexpr int64_t kStep = 64, kStride = 2 * kTile * 4;
    const int64_t groups = a.shape.groups();
    Products products[2];
    for (int64_t t = 0; t < kTiles; t += 2) {
        const uint8_t* b = panel + t * tile_bytes;
        _tile_loadd(4, b, kStep);
        _tile_loadd(5, b + tile_bytes, kStep);
        _tile_loadd(6, b + kStep * kTile, kStep);
        _tile_loadd(7, b + tile_bytes + kStep * kTile, kStep);
        auto add = [&](int64_t row) {
            const int64_t rest = count - row;
            add_products<kBits, kSigned>(record, t, products[row / kTileRows % 2],
                                         rest < kTileRows ? rest : kTileRows, row_sums + row * groups, groups,
                                         totals + row * kBlock, ahead);
        };
        for (int64_t row = 0; row < count; row += kTileRows) {
            const int8_t* x = codes + row * kStep;
            int32_t* sums = products[row / kTileRows % 2].sums;
            _tile_zero(0);
            _tile_zero(1);
            _tile_loadd(2, x, kStep);
            if constexpr (kSigned) {
                _tile_dpbssd(0, 2, 4);
                _tile_dpbssd(1, 2, 5);
                _tile_loadd(3, x + a.rows.step_bytes, kStep);
                _tile_dpbssd(0, 3, 6);
                _tile_dpbssd(1, 3, 7);
            } else {
                _tile_dpbsud(0, 2, 4);
                _tile_dpbsud(1, 2, 5);
                _tile_loadd(3, x + a.rows.step_bytes, kStep);
                _tile_dpbsud(0, 3, 6);
                _tile_dpbsud(1, 3, 7);
            }
            _tile_stored(0, sums, kStride);
            _tile_stored(1, sums + kTile, kStride);
            if (row) add(row - kTileRows);
        }
        add((count - 1) / kTileRows * kTileRows);
    }
}

// One group of some rows. A product is added up while the next one is under way.
template <int kBits, bool kSigned>
void group_rows(const IntLinear& a, const Record& record, const uint8_t* panel, int64_t tile_bytes,
                int64_t first_row, int64_t count, int64_t g, int64_t input, float* totals, Ahead ahead) {
    const IntShape& shape = a.shape;
    const int64_t step = shape.step(), steps = (record.count * kChunk + step - 1) / step;
    const int8_t* codes = a.rows.codes + input / step * a.rows.step_bytes + first_row * step;
    const int32_t* row_sums = a.rows.sums + first_row * shape.groups() + g;
    if (steps == 2 && step == 64 && a.rows.rows >= kTileRows)
        return group_rows_resident<kBits, kSigned>(a, record, panel, tile_bytes, codes, row_sums, count,
                                                   totals, ahead);
    Products products[2];
    const int64_t tasks = (count + 2 * kTileRows - 1) / (2 * kTileRows) * 2;
    auto add = [&](int64_t task) {
        const int64_t row = task / 2 * 2 * kTileRows, rest = count - row;
        add_products<kBits, kSigned>(
            record, task % 2 * 2, products[task % 2], rest < 2 * kTileRows ? rest : 2 * kTileRows,
            row_sums + row * shape.groups(), shape.groups(), totals + row * kBlock, ahead);
    };
    for (int64_t task = 0; task < tasks; ++task) {
        const int64_t row = task / 2 * 2 * kTileRows;
        multiply_tiles<kSigned>(codes + row * step, step, a.rows.step_bytes,
                                panel + task % 2 * 2 * tile_bytes, tile_bytes, steps, count - row > kTileRows,
                                products[task % 2]);
        if (task) add(task - 1);
    }
    add(tasks - 1);
}

template <int kBits>
void many_rows(const IntLinear& a, int64_t block) {
    const IntShape& shape = a.shape;
    const int64_t rows = a.rows.rows, pass = rows < kTilePass ? rows : kTilePass;
    const bool keep = rows > kTilePass;  // a later pass needs the panels again
    const int64_t tile_bytes =
        (shape.group_chunks(0) * kChunk + shape.step() - 1) / shape.step() * shape.step() * kTile;
    const int64_t panel_bytes = kTiles * tile_bytes;
    uint8_t* panels = static_cast<uint8_t*>(
        scratch(Scratch::piece, panel_bytes * (keep ? shape.groups() : 2) + pass * kBlock * 4));
    float* totals = reinterpret_cast<float*>(panels + panel_bytes * (keep ? shape.groups() : 2));
    const Tiles tiles(rows < kTileRows ? rows : kTileRows, shape.step());
    for (int64_t first = 0; first < rows; first += pass) {
        const int64_t count = rows - first < pass ? rows - first : pass;
        memset(totals, 0, static_cast<size_t>(count * kBlock * 4));
        const uint8_t* at = a.packed + block * shape.block_bytes();
        for (int64_t g = 0, input = 0; g < shape.groups(); ++g) {
            const Record record(shape, at, g);
            uint8_t* panel = panels + (keep ? g : g % 2) * panel_bytes;
            if (first == 0) unpack_tiles<kBits>(shape, record, tile_bytes, panel);
            const Ahead ahead(record.chunks + kAhead, record.end(shape) - at, first == 0 ? count : 0);
            if (centred<kBits>(shape))
                group_rows<kBits, true>(a, record, panel, tile_bytes, first, count, g, input, totals, ahead);
            else
                group_rows<kBits, false>(a, record, panel, tile_bytes, first, count, g, input, totals, ahead);
            input += record.count * kChunk;
            at = record.end(shape);
        }
        for (int64_t row = 0; row < count; ++row) finish(a, block, first + row, totals + row * kBlock);
    }
}

// Sixteen rows of 8-bit codes: tiles take them from where they are packed, 32 inputs at a time. Nothing is
// unpacked, and reading memory is all that is waited for.
inline void direct_tile(const IntLinear& a, int64_t block, int64_t first, int64_t rows) {
    const IntShape& shape = a.shape;
    const int64_t step = shape.step(), groups = shape.groups();
    const int8_t* codes = a.rows.codes + first * step;
    const int32_t* row_sums = a.rows.sums + first * groups;
    alignas(64) int32_t sums[kTileRows * kBlock];
    alignas(64) float totals[kTileRows * kBlock] = {};
    constexpr int64_t kTileBytes = kChunk * kTile, kStride = kBlock * 4;
    const uint8_t* at = a.packed + block * shape.block_bytes();
    for (int64_t g = 0, input = 0; g < groups; ++g) {
        const Record record(shape, at, g);
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
        for (int64_t c = 0; c < record.count; ++c, input += kChunk) {
            const uint8_t* tile = record.chunks + c * kTiles * kTileBytes;
            _tile_loadd(4, codes + input / step * a.rows.step_bytes + input % step, step);
            _tile_loadd(6, tile, 64);
            _tile_dpbsud(0, 4, 6);
            _tile_loadd(7, tile + kTileBytes, 64);
            _tile_dpbsud(1, 4, 7);
            _tile_loadd(6, tile + 2 * kTileBytes, 64);
            _tile_dpbsud(2, 4, 6);
            _tile_loadd(7, tile + 3 * kTileBytes, 64);
            _tile_dpbsud(3, 4, 7);
            for (int64_t line = 0; line < kTiles * kTileBytes; line += 64) prefetch(tile + line + kAhead);
        }
        _tile_stored(0, sums, kStride);
        _tile_stored(1, sums + kTile, kStride);
        _tile_stored(2, sums + 2 * kTile, kStride);
        _tile_stored(3, sums + 3 * kTile, kStride);
        for (int64_t r = 0; r < rows; ++r) {
            for (int64_t t = 0; t < kTiles; ++t) {
                float* total = totals + r * kBlock + t * kTile;
                const I32x16 sum =
                    load_i32(sums + r * kBlock + t * kTile) + start<8>(record, t, row_sums[r * groups + g]);
                add_group(total, sum, record, t);
            }
        }
        at = record.end(shape);
    }
    for (int64_t r = 0; r < rows; ++r) finish(a, block, first + r, totals + r * kBlock);
}

inline void direct_rows(const IntLinear& a, int64_t block) {
    const int64_t rows = a.rows.rows;
    const Tiles tiles(rows < kTileRows ? rows : kTileRows, kChunk);
    for (int64_t first = 0; first < rows; first += kTileRows)
        direct_tile(a, block, first, rows - first < kTileRows ? rows - first : kTileRows);
}

}  // namespace
}  // namespace headrace::HR_LEVEL
