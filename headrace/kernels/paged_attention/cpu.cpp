// paged_attention for processors. Compiled once per level. See kernel.h for the layout of pages, walk.h for
// the order in which a row's sums run.
//
// Bounds, per token and kv head: 2 H items read; 2 M H multiply-adds for M rows that share the head.
#include "headrace/attention_worklist.h"
#include "paged_attention/walk.h"
#include "paged_attention/write.h"

namespace headrace::HR_LEVEL {
namespace {

void cut_strips(Space& space) {
    const int64_t rows = space.count;
    space.num_strips = 0;
    for (int64_t row = 0, count; row < rows; row += count) {
        count = rows - row >= 4 ? 4 : rows - row >= 2 ? 2 : 1;
        Strip strip{row, count, space.positions[row], space.positions[row], 0, 0};
        for (int64_t r = row + 1; r < row + count; ++r) {
            if (space.positions[r] < strip.low) strip.low = space.positions[r];
            if (space.positions[r] > strip.high) strip.high = space.positions[r];
        }
        space.strips[space.num_strips++] = strip;
    }
}

template <class T>
void attend_tile(const PagedAttention& a, const Tile& tile) {
    const int64_t H = a.store.head_size;
    auto* floats = static_cast<float*>(scratch(Scratch::piece, space_floats(H) * 4));
    Space space;
    begin_tile(a, tile, floats, space);
    space.scores = floats + tile_floats(H);
    space.wide = space.scores + kTileRows * kChunkTokens;
    cut_strips(space);
    walk<T>(a, tile, space);
    end_tile(a, space);
}

// function(tile, segments) for every tile, span by span; a span's last tiles see most tokens, and come
// first. The segments of a span of few rows may go to different threads: it has too few tiles for that.
template <class Function>
void for_each_tile(const PagedAttention& a, const Function& function) {
    const int64_t kv_heads = a.store.kv_heads;
    for (int64_t i = 0, next; i < a.num_runs; i = next) {
        const Run& run = a.runs[i];
        for (next = i + 1; next < a.num_runs && a.runs[next].first_row == run.first_row;) ++next;
        const int64_t rows = (run.end_row - run.first_row) * per_head(a);
        for (int64_t first = (rows - 1) / kTileRows * kTileRows; first >= 0; first -= kTileRows) {
            const int64_t count = rows - first < kTileRows ? rows - first : kTileRows;
            Tile tile{&run, next - i, 0, first, count, 0, INT64_MAX, nullptr, nullptr};
            const int64_t row = first / per_head(a), end = (first + count - 1) / per_head(a) + 1;
            const Seen seen = seen_by(a, tile, a.positions + run.first_row + row, end - row);
            int64_t segments = 1;
            if (rows <= kTileRows && seen.begin < seen.end) {
                tile.from = seen.begin / kSegmentTokens * kSegmentTokens;
                segments = (seen.end - tile.from + kSegmentTokens - 1) / kSegmentTokens;
            }
            for (; tile.kv_head < kv_heads; ++tile.kv_head) function(tile, segments);
        }
    }
}

Worklist plan_tiles(const PagedAttention& a) {
    return plan(a, [&](const auto& function) { for_each_tile(a, function); });
}

template <class T>
void attend(const PagedAttention& a) {
    run(a, plan_tiles(a), [&](const Tile& tile) { attend_tile<T>(a, tile); });
}

// function.template operator()<T>() for what the pages hold.
template <class Function>
inline void with_stored(Stored stored, const Function& function) {
    switch (stored) {
        case Stored::i8:
            return function.template operator()<int8_t>();
        case Stored::bf16:
            return function.template operator()<bf16>();
        default:
            return function.template operator()<float>();
    }
}

void attend_any(const PagedAttention& a) {
    with_stored(a.store.stored, [&]<class T>() { attend<T>(a); });
}

int64_t count_pieces(const PagedAttention& a) {
    return plan_tiles(a).num_pieces;
}

void write_any(const PagedWrite& a) {
    with_stored(a.store.stored, [&]<class T>() { write<T>(a); });
}

}  // namespace

constinit const PagedAttentionTable paged_attention = {attend_any, count_pieces, write_any};

}  // namespace headrace::HR_LEVEL
