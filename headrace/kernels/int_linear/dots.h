// Rows by dot products: without matrix tiles, or with too few rows to fill one.
//
// A block's codes are taken from where they are packed, and unpacked in registers for some rows at a time; or
// they are unpacked into a panel first, for all rows.
//
// Shared by formats whose blocks hold the same chunks. Each brings its Record, what a group's sums start from
// (`start`), how they join the totals (`add_group`), and what becomes of these (`finish`).
#pragma once

#include "headrace/parallel.h"
#include "int_linear/codes.h"

namespace headrace::HR_LEVEL {
namespace {

constexpr int64_t kPassRows = 384;  // rows per pass over a block: their sums stay in the second-level cache

// Some chunks of a group that all rows pass together: they stay in the first-level cache.
template <class Record>
struct Slice {
    static constexpr int64_t kMost = 8;

    const Record& record;
    int64_t group, first, count;
    bool fetch;         // nobody has read them before
    int64_t at[kMost];  // where in a row's codes each chunk begins

    template <class Linear>
    Slice(const Linear& a, const Record& record, int64_t group, int64_t first, bool fetch)
        : record(record),
          group(group),
          first(first),
          count(record.count - first < kMost ? record.count - first : kMost),
          fetch(fetch) {
        for (int64_t c = 0; c < count; ++c) at[c] = a.place(group * a.shape.group + (first + c) * kChunk);
    }
    bool starts() const { return first == 0; }
    bool ends() const { return first + count == record.count; }
};

// Codes as they are packed, those to come fetched on the way.
template <int kBits, class Record>
struct Packed {
    static constexpr bool kPanel = false;
    const Slice<Record>& slice;

    Bytes quad(int64_t c, int64_t t, int k) const {
        return quad_of<kBits>(k, slice.record.chunks + ((slice.first + c) * kTiles + t) * 64 * kBits);
    }
    // A line or none of the tile `number` of those to come, in the order of memory, which is not that of
    // reading: the processor follows nothing else. Spread over the quads, because few can be under way at
    // once.
    [[gnu::always_inline]] void fetch(int64_t number, int k) const {
        const uint8_t* next = slice.record.chunks + (slice.first * kTiles + number) * 64 * kBits + kAhead;
        if (k * kBits % 8 < kBits) prefetch(next + 64 * (k * kBits / 8));
    }
};

// Codes, quad after quad of all four tiles. The next slice is fetched while the first rows multiply: nothing
// would hide that while codes are unpacked. Into the second-level cache if a panel and a slice fill the
// first.
template <int kBits, class Record>
struct Panel {
    static constexpr bool kPanel = true;
    Packed<kBits, Record> packed;
    uint8_t* codes;

    Bytes quad(int64_t c, int64_t t, int k) const {
        return load_bytes(codes + ((c * kQuads + k) * kTiles + t) * 64);
    }
    [[gnu::always_inline]] void fetch(int64_t number, int k) const {
        if (k * kBits % 8 >= kBits) return;
        const Slice<Record>& slice = packed.slice;
        const uint8_t* next = slice.record.chunks +
                              ((slice.first + slice.count) * kTiles + number) * 64 * kBits +
                              64 * (k * kBits / 8);
        kBits <= 4 ? prefetch(next) : prefetch_second(next);
    }
    void fill() const {
        for (int64_t c = 0; c < packed.slice.count; ++c) {
            for (int64_t t = 0; t < kTiles; ++t) {
                HR_UNROLL
                for (int k = 0; k < kQuads; ++k)
                    store_bytes(codes + ((c * kQuads + k) * kTiles + t) * 64, packed.quad(c, t, k));
            }
        }
    }
};

// What has been added up of some rows of a block: [row][64] of each.
template <class Total>
struct Sums {
    Total* totals;   // of whole groups
    int32_t* group;  // of the group that is not finished
};

// A slice for kRows rows, the sums of kAtOnce tiles in registers together. Loops over registers are unrolled
// by name: an array stays in registers only if the compiler sees every index early.
template <int kBits, int kRows, int kAtOnce, class Linear, class Record, class Codes>
void add_slice(const Linear& a, const Slice<Record>& slice, const Codes& from, int64_t row,
               const Sums<typename Record::Total>& sums) {
    const int64_t stride = a.rows.stride, groups = a.shape.groups();
    const int32_t* row_sums = a.rows.sums + row * groups + slice.group;
    for (int64_t t = 0; t < kTiles; t += kAtOnce) {
        Dots<kBits> dots[kRows][kAtOnce];
        HR_UNROLL
        for (int r = 0; r < kRows; ++r) {
            HR_UNROLL
            for (int u = 0; u < kAtOnce; ++u)
                dots[r][u].sum = slice.starts() ? start<kBits>(slice.record, t + u, row_sums[r * groups])
                                                : load_i32(sums.group + r * kBlock + (t + u) * kTile);
        }
        for (int64_t c = 0; c < slice.count; ++c) {
            const int8_t* x = a.rows.codes + row * stride + slice.at[c];
            const bool fetch = slice.fetch && row == 0;
            HR_UNROLL
            for (int i = 0; i < kAtOnce * kQuads; ++i) {  // in the order of memory
                const int u = Codes::kPanel ? i % kAtOnce : i / kQuads;
                const int k = Codes::kPanel ? i / kAtOnce : i % kQuads;
                if (fetch) from.fetch(t * slice.count + c * kAtOnce + u, k);
                const auto codes = factor<kBits>(from.quad(c, t + u, k));
                HR_UNROLL
                for (int r = 0; r < kRows; ++r) dots[r][u].add(k, codes, load_four(x + r * stride + 4 * k));
            }
        }
        asm("" ::: "memory");  // else GCC widens what add_group reads ahead of the loop, and spills the sums
        HR_UNROLL
        for (int r = 0; r < kRows; ++r) {
            HR_UNROLL
            for (int u = 0; u < kAtOnce; ++u) {
                const int64_t at = r * kBlock + (t + u) * kTile;
                if (slice.ends())
                    add_group(sums.totals + at, dots[r][u].sum, slice.record, t + u);
                else
                    store_i32(sums.group + at, dots[r][u].sum);
            }
        }
    }
}

// As many rows at a time as there are registers for.
template <int kBits, class Linear, class Record, class Codes>
void add_rows(const Linear& a, const Slice<Record>& slice, const Codes& from, int64_t first, int64_t count,
              const Sums<typename Record::Total>& sums) {
    int64_t r = 0;
    auto take = [&]<int kRows, int kAtOnce>() {
        for (; r + kRows <= count; r += kRows)
            add_slice<kBits, kRows, kAtOnce>(a, slice, from, first + r,
                                             {sums.totals + r * kBlock, sums.group + r * kBlock});
    };
#if defined(HR_LEVEL_AVX512)
    if constexpr (Codes::kPanel)
        take.template operator()<6, 4>();
    else
        take.template operator()<8, 1>();
    // The rest in one go: each time, codes are unpacked again.
    take.template operator()<7, 1>();
    take.template operator()<6, 1>();
    take.template operator()<5, 1>();
#elif defined(HR_LEVEL_AVX2)
    if constexpr (Codes::kPanel) take.template operator()<6, 1>();
#endif
#if defined(HR_LEVEL_GENERIC)
    take.template operator()<1, 1>();
#else
    take.template operator()<4, 1>();
#if defined(HR_LEVEL_AVX512)
    take.template operator()<3, 2>();
#endif
    take.template operator()<2, 2>();
    take.template operator()<1, 4>();
#endif
}

template <class Record, int kBits, bool kUnpack, class Linear>
void pass_rows(const Linear& a, int64_t block, int64_t first, int64_t count) {
    using Total = typename Record::Total;
    constexpr int64_t kMost = Slice<Record>::kMost;
    const auto& shape = a.shape;
    const int64_t panel_bytes = kUnpack ? kMost * kChunk * kBlock : 0;
    uint8_t* memory = static_cast<uint8_t*>(scratch(Scratch::piece, panel_bytes + 2 * count * kBlock * 4));
    Total* totals = reinterpret_cast<Total*>(memory + panel_bytes);
    const Sums<Total> sums{totals, reinterpret_cast<int32_t*>(totals + count * kBlock)};
    memset(totals, 0, static_cast<size_t>(count * kBlock * 4));
    const uint8_t* at = a.packed + block * shape.block_bytes() + shape.top_bytes();
    for (int64_t g = 0; g < shape.groups(); ++g) {
        const Record record(shape, at, g);
        for (int64_t c = 0; c < record.count; c += kMost) {
            const Slice<Record> slice(a, record, g, c, first == 0);
            const Packed<kBits, Record> packed{slice};
            if constexpr (kUnpack) {
                const Panel<kBits, Record> panel{packed, memory};
                panel.fill();
                add_rows<kBits>(a, slice, panel, first, count, sums);
            } else {
                add_rows<kBits>(a, slice, packed, first, count, sums);
            }
        }
        at = record.end(shape);
    }
    for (int64_t row = 0; row < count; ++row) finish(a, block, first + row, totals + row * kBlock);
}

template <class Record, int kBits, bool kUnpack, class Linear>
void dot_rows(const Linear& a, int64_t block) {
    for (int64_t row = 0; row < a.rows.rows; row += kPassRows)
        pass_rows<Record, kBits, kUnpack>(a, block, row,
                                          a.rows.rows - row < kPassRows ? a.rows.rows - row : kPassRows);
}

}  // namespace
}  // namespace headrace::HR_LEVEL
