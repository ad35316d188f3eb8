// A tile of attention over pages: rows that share a kv head and walk its pages together. Compiled once per
// level.
//
// Segments end at absolute positions. A segment's state is added to that of those before it, in order,
// whichever thread computed it, and beside whichever rows: so what a row computes depends on its own position
// and on which pages exist, not on the rows beside it, on how its prompt was cut or on threads.
#pragma once

#include "headrace/attention_rows.h"
#include "headrace/attention_state.h"

namespace headrace::HR_LEVEL {
namespace {

constexpr int64_t kTileRows = 64;
constexpr int64_t kSegmentTokens = 1024;  // that one thread walks in order; each gives a state of its own

// Row r is query r / per_head of a span, head r % per_head of those that share the kv head.
struct Tile {
    const Run* runs;  // of the span
    int64_t num_runs;
    int64_t kv_head, first, count;
    int64_t from, to;  // positions
    float* parts;      // [count][part_floats], where a segment's state goes; null: the results are final
    const Tile* next;  // walked with this one, since it reads the same pages: see attention_worklist.h
};

// Memory of a tile at work, its rows and then those of the tiles walked with it.
struct TileSpace {
    float* q;      // [kTileRows][H], scaled
    float* out;    // [kTileRows][H], of the segment
    float* whole;  // [kTileRows][H], of the segments before it
    float whole_most[kTileRows], whole_sum[kTileRows];
    int64_t positions[kTileRows];
    int64_t at[kTileRows];    // [T, N]: whose row it is
    float* parts[kTileRows];  // [part_floats]; null: the result is final
    int64_t count;
};

inline int64_t tile_floats(int64_t head_size) {
    return 3 * kTileRows * head_size;
}

// Below, a batch `a` is AttentionRows with a `store` that knows kv_heads, head_size and page_tokens.

template <class Batch>
int64_t per_head(const Batch& a) {
    return a.heads / a.store.kv_heads;
}
// Row r of the tile, in [T, N].
template <class Batch>
int64_t place_of(const Batch& a, const Tile& tile, int64_t r) {
    const int64_t heads = per_head(a), row = tile.runs->first_row + (tile.first + r) / heads;
    return row * a.heads + tile.kv_head * heads + (tile.first + r) % heads;
}

template <class Batch>
void begin_row(const Batch& a, const Tile& tile, int64_t r, TileSpace& space) {
    const int64_t H = a.store.head_size, i = space.count++, at = place_of(a, tile, r), row = at / a.heads;
    const float* q = a.q + row * a.q_stride + at % a.heads * H;
    for (int64_t h = 0; h < H; h += kLanes) {
        store(space.q + i * H + h, load(q + h) * broadcast(a.scale));
        store(space.whole + i * H + h, broadcast(0));
    }
    space.whole_most[i] = kHidden, space.whole_sum[i] = 0;
    space.positions[i] = a.positions[row], space.at[i] = at;
    space.parts[i] = tile.parts ? tile.parts + r * part_floats(H) : nullptr;
    if (tile.parts) space.parts[i][H] = kHidden;  // the segment may have no pages
}

// `floats` has room for tile_floats.
template <class Batch>
void begin_tile(const Batch& a, const Tile& first, float* floats, TileSpace& space) {
    const int64_t H = a.store.head_size;
    space.q = floats;
    space.out = space.q + kTileRows * H;
    space.whole = space.out + kTileRows * H;
    space.count = 0;
    for (const Tile* tile = &first; tile; tile = tile->next)
        for (int64_t r = 0; r < tile->count; ++r) begin_row(a, *tile, r, space);
}

// Row r has walked a segment, with space.out of values.
inline void end_segment(TileSpace& space, int64_t r, float most, float sum, int64_t head_size) {
    const float* out = space.out + r * head_size;
    if (float* part = space.parts[r]) {
        for (int64_t h = 0; h < head_size; h += kLanes) store(part + h, load(out + h));
        part[head_size] = most, part[head_size + 1] = sum;
    } else {
        add_state(most, sum, out, head_size, space.whole_most[r], space.whole_sum[r],
                  space.whole + r * head_size);
    }
}

// The result at `at` of [T, N] from a row's sums.
template <class Batch>
void finish(const Batch& a, int64_t at, const float* whole, float most, float total) {
    const int64_t H = a.store.head_size;
    const F32x16 factor = broadcast(total > 0 ? 1.0f / total : 0.0f);
    for (int64_t h = 0; h < H; h += kLanes) store(a.out + at * H + h, load(whole + h) * factor);
    a.lse[at] = total > 0 ? most + __builtin_logf(total) : kHidden;
}

template <class Batch>
void end_tile(const Batch& a, const TileSpace& space) {
    for (int64_t r = 0; r < space.count; ++r)
        if (!space.parts[r])
            finish(a, space.at[r], space.whole + r * a.store.head_size, space.whole_most[r],
                   space.whole_sum[r]);
}

}  // namespace
}  // namespace headrace::HR_LEVEL
