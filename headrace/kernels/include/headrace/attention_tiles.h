// Attention over pages, cut into tiles: rows of one span that share a kv head and walk its pages together.
// Compiled once per level.
//
// Segments end at absolute positions. A segment's state is added to that of those before it, in order,
// whichever thread computed it: so what a row computes depends on its own position and on which pages exist,
// not on the rows beside it, on how its prompt was cut or on threads.
#pragma once

#include "headrace/attention_rows.h"
#include "headrace/attention_state.h"
#include "headrace/parallel.h"

namespace headrace::HR_LEVEL {
namespace {

constexpr int64_t kTileRows = 64;
constexpr int64_t kSegmentTokens = 1024;  // that one thread walks in order; each gives a state of its own

// Row r is query r / per_head of the span, head r % per_head of those that share the kv head.
struct Tile {
    const Run* runs;
    int64_t num_runs;
    int64_t kv_head, first, count;
    int64_t from, to;  // positions
    float* parts;  // [count][part_floats], where the state of one segment goes; null: the results are final
};

// A piece of work: a tile, or one of its segments. `joined` segments begin here, if more than one.
struct Piece {
    Tile tile;
    int64_t joined;
};

// Memory of a tile at work.
struct TileSpace {
    float* q;      // [kTileRows][H], scaled
    float* out;    // [kTileRows][H], of the segment
    float* whole;  // [kTileRows][H], of the segments before it
    float whole_most[kTileRows], whole_sum[kTileRows];
    int64_t positions[kTileRows];
};

inline int64_t tile_floats(int64_t head_size) {
    return 3 * kTileRows * head_size;
}

// Below, a batch `a` is AttentionRows with a `store` that knows kv_heads and head_size.

template <class Batch>
int64_t per_head(const Batch& a) {
    return a.heads / a.store.kv_heads;
}
template <class Batch>
int64_t row_of(const Batch& a, const Tile& tile, int64_t r) {
    return tile.runs->first_row + (tile.first + r) / per_head(a);
}
template <class Batch>
int64_t head_of(const Batch& a, const Tile& tile, int64_t r) {
    return tile.kv_head * per_head(a) + (tile.first + r) % per_head(a);
}

// `floats` has room for tile_floats.
template <class Batch>
void begin_tile(const Batch& a, const Tile& tile, float* floats, TileSpace& space) {
    const int64_t H = a.store.head_size;
    space.q = floats;
    space.out = space.q + kTileRows * H;
    space.whole = space.out + kTileRows * H;
    for (int64_t r = 0; r < tile.count; ++r) {
        const int64_t row = row_of(a, tile, r);
        const float* q = a.q + row * a.q_stride + head_of(a, tile, r) * H;
        for (int64_t h = 0; h < H; h += kLanes) {
            store(space.q + r * H + h, load(q + h) * broadcast(a.scale));
            store(space.whole + r * H + h, broadcast(0));
        }
        space.whole_most[r] = kHidden, space.whole_sum[r] = 0, space.positions[r] = a.positions[row];
        if (tile.parts) tile.parts[r * part_floats(H) + H] = kHidden;  // the segment may have no pages
    }
}

// Row r has walked a segment, with space.out of values.
inline void end_segment(const Tile& tile, TileSpace& space, int64_t r, float most, float sum,
                        int64_t head_size) {
    const float* out = space.out + r * head_size;
    if (tile.parts) {
        float* part = tile.parts + r * part_floats(head_size);
        for (int64_t h = 0; h < head_size; h += kLanes) store(part + h, load(out + h));
        part[head_size] = most, part[head_size + 1] = sum;
    } else {
        add_state(most, sum, out, head_size, space.whole_most[r], space.whole_sum[r],
                  space.whole + r * head_size);
    }
}

// A row's result from its sums.
template <class Batch>
void finish(const Batch& a, const Tile& tile, int64_t r, const float* whole, float most, float total) {
    const int64_t H = a.store.head_size, at = row_of(a, tile, r) * a.heads + head_of(a, tile, r);
    const F32x16 factor = broadcast(total > 0 ? 1.0f / total : 0.0f);
    for (int64_t h = 0; h < H; h += kLanes) store(a.out + at * H + h, load(whole + h) * factor);
    a.lse[at] = total > 0 ? most + __builtin_logf(total) : kHidden;
}

template <class Batch>
void end_tile(const Batch& a, const Tile& tile, const TileSpace& space) {
    for (int64_t r = 0; r < tile.count && !tile.parts; ++r)
        finish(a, tile, r, space.whole + r * a.store.head_size, space.whole_most[r], space.whole_sum[r]);
}

// Adds up the parts of a tile whose first part this is.
template <class Batch>
void join(const Batch& a, const Tile& tile, int64_t segments) {
    const int64_t H = a.store.head_size, size = part_floats(H);
    auto* whole = static_cast<float*>(scratch(Scratch::piece, H * 4));
    for (int64_t r = 0; r < tile.count; ++r) {
        float most = kHidden, total = 0;
        for (int64_t h = 0; h < H; h += kLanes) store(whole + h, broadcast(0));
        for (int64_t i = 0; i < segments; ++i) {
            const float* part = tile.parts + (i * tile.count + r) * size;
            add_state(part[H], part[H + 1], part, H, most, total, whole);
        }
        finish(a, tile, r, whole, most, total);
    }
}

// attend_tile(tile) for every tile, or segment of one. for_each_tile(function) calls function(tile,
// segments); a tile of several begins at the first one's position.
template <class Batch, class ForEachTile, class AttendTile>
void attend_tiles(const Batch& a, const ForEachTile& for_each_tile, const AttendTile& attend_tile) {
    const int64_t size = part_floats(a.store.head_size);
    int64_t count = 0, floats = 0;
    for_each_tile([&](const Tile& tile, int64_t segments) {
        count += segments;
        if (segments > 1) floats += segments * tile.count * size;
    });
    auto* parts =
        static_cast<float*>(scratch(Scratch::call, floats * 4 + count * static_cast<int64_t>(sizeof(Piece))));
    auto* const pieces = reinterpret_cast<Piece*>(parts + floats);
    count = 0;
    for_each_tile([&](Tile tile, int64_t segments) {
        for (int64_t i = 0; i < segments; ++i) {
            if (segments > 1) {
                tile.to = tile.from + kSegmentTokens;
                tile.parts = parts;
                parts += tile.count * size;
            }
            pieces[count++] = {tile, i == 0 ? segments : 0};
            tile.from += kSegmentTokens;
        }
    });
    in_pieces(count, 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) attend_tile(pieces[i].tile);
    });
    if (floats == 0) return;
    for_each_row(count, 4 * size, [&](int64_t i) {
        if (pieces[i].joined > 1) join(a, pieces[i].tile, pieces[i].joined);
    });
}

}  // namespace
}  // namespace headrace::HR_LEVEL
