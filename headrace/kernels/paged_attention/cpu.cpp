// paged_attention for processors. Compiled once per level. See kernel.h for the layout of pages, walk.h for
// the order in which a row's sums run.
//
// Bounds, per token and kv head: 2 H items read; 2 M H multiply-adds for M rows that share the head.
#include "headrace/parallel.h"
#include "paged_attention/walk.h"
#include "paged_attention/write.h"

namespace headrace::HR_LEVEL {
namespace {

int64_t row_of(const PagedAttention& a, const Tile& tile, int64_t r) {
    return tile.runs->first_row + (tile.first + r) / (a.heads / a.store.kv_heads);
}
int64_t head_of(const PagedAttention& a, const Tile& tile, int64_t r) {
    const int64_t per_head = a.heads / a.store.kv_heads;
    return tile.kv_head * per_head + (tile.first + r) % per_head;
}

// A row's result from its sums.
void finish(const PagedAttention& a, const Tile& tile, int64_t r, const float* whole, float most,
            float total) {
    const int64_t H = a.store.head_size, at = row_of(a, tile, r) * a.heads + head_of(a, tile, r);
    const F32x16 factor = broadcast(total > 0 ? 1.0f / total : 0.0f);
    for (int64_t h = 0; h < H; h += kLanes) store(a.out + at * H + h, load(whole + h) * factor);
    a.lse[at] = total > 0 ? most + __builtin_logf(total) : kHidden;
}

void cut_strips(Space& space, int64_t rows) {
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
    Space space;
    space.q = static_cast<float*>(scratch(Scratch::piece, space_floats(H) * 4));
    space.out = space.q + kTileRows * H;
    space.whole = space.out + kTileRows * H;
    space.scores = space.whole + kTileRows * H;
    space.wide = space.scores + kTileRows * kChunkTokens;
    for (int64_t r = 0; r < tile.count; ++r) {
        const int64_t row = row_of(a, tile, r);
        const float* q = a.q + row * a.q_stride + head_of(a, tile, r) * H;
        for (int64_t h = 0; h < H; h += kLanes) {
            store(space.q + r * H + h, load(q + h) * broadcast(a.scale));
            store(space.whole + r * H + h, broadcast(0));
        }
        space.whole_most[r] = kHidden, space.whole_sum[r] = 0, space.positions[r] = a.positions[row];
        if (tile.parts) tile.parts[r * part_floats(H) + H] = kHidden;  // its pages may all be gone
    }
    cut_strips(space, tile.count);
    walk<T>(a, tile, space);
    for (int64_t r = 0; r < tile.count && !tile.parts; ++r)
        finish(a, tile, r, space.whole + r * H, space.whole_most[r], space.whole_sum[r]);
}

// Adds up the parts of a tile whose first part this is.
void join(const PagedAttention& a, const Tile& tile, int64_t segments) {
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

// function(tile, segments) for every tile, span by span; a span's last tiles see most tokens, and come
// first. The segments of a span of few rows may go to different threads: it has too few tiles for that.
template <class Function>
void for_each_tile(const PagedAttention& a, const Function& function) {
    const int64_t kv_heads = a.store.kv_heads;
    for (int64_t i = 0, next; i < a.num_runs; i = next) {
        const Run& run = a.runs[i];
        for (next = i + 1; next < a.num_runs && a.runs[next].first_row == run.first_row;) ++next;
        const int64_t rows = (run.end_row - run.first_row) * (a.heads / kv_heads);
        for (int64_t first = (rows - 1) / kTileRows * kTileRows; first >= 0; first -= kTileRows) {
            const int64_t count = rows - first < kTileRows ? rows - first : kTileRows;
            Tile tile{&run, next - i, 0, first, count, 0, INT64_MAX, nullptr};
            const Seen seen = seen_by(a, tile);
            int64_t segments = 1;
            if (rows <= kTileRows && seen.begin < seen.end) {
                tile.from = seen.begin / kSegmentTokens * kSegmentTokens;
                segments = (seen.end - tile.from + kSegmentTokens - 1) / kSegmentTokens;
            }
            for (; tile.kv_head < kv_heads; ++tile.kv_head) function(tile, segments);
        }
    }
}

// A piece of work: a tile, or one of its segments. `joined` segments begin here, if more than one.
struct Piece {
    Tile tile;
    int64_t joined;
};

template <class T>
void attend(const PagedAttention& a) {
    const int64_t size = part_floats(a.store.head_size);
    int64_t count = 0, floats = 0;
    for_each_tile(a, [&](const Tile& tile, int64_t segments) {
        count += segments;
        if (segments > 1) floats += segments * tile.count * size;
    });
    auto* parts =
        static_cast<float*>(scratch(Scratch::call, floats * 4 + count * static_cast<int64_t>(sizeof(Piece))));
    auto* const pieces = reinterpret_cast<Piece*>(parts + floats);
    count = 0;
    for_each_tile(a, [&](Tile tile, int64_t segments) {
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
        for (int64_t i = begin; i < end; ++i) attend_tile<T>(a, pieces[i].tile);
    });
    if (floats == 0) return;
    for_each_row(count, 4 * size, [&](int64_t i) {
        if (pieces[i].joined > 1) join(a, pieces[i].tile, pieces[i].joined);
    });
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

void write_any(const PagedWrite& a) {
    with_stored(a.store.stored, [&]<class T>() { write<T>(a); });
}

}  // namespace

constinit const PagedAttentionTable paged_attention = {attend_any, write_any};

}  // namespace headrace::HR_LEVEL
