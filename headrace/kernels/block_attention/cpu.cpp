// block_attention for processors. Compiled once per level. See block.h for what is done with a block.
//
// A tile is rows of a run's that share a kv head. Segments end at absolute positions; a segment's state is
// added to that of those before it, in order, whichever thread computed it.
//
// Bounds, per token and kv head: H (bits + 16 / group + 16 / channels) / 4 bytes read; 2 M H products of
// bytes for M rows that share the head.
#include "block_attention/block.h"
#include "headrace/parallel.h"

namespace headrace::HR_LEVEL {
namespace {

constexpr int64_t kTileRows = 64;
constexpr int64_t kSegmentTokens = 1024;

// Row r is query r / per_head of the runs' rows, head r % per_head of those that share the kv head.
struct Tile {
    const BlockRun* runs;
    int64_t num_runs;
    int64_t kv_head, first, count;
    int64_t from, to;  // positions
    float* parts;      // [count][part_floats], where the state of one segment goes; null: results are final
    int64_t joined;    // segments that begin with this one, where it is the first of several
};

// Memory of a tile at work.
struct Space {
    float *q, *out, *whole;  // [kTileRows][H]: q is scaled; out of the segment, whole of those before it
    float* scores;           // [kStripRows][block_tokens]
    Rounded* rows;           // [kStripRows]
    float most[kTileRows], total[kTileRows], whole_most[kTileRows], whole_total[kTileRows];
    int64_t positions[kTileRows];
};

int64_t per_head(const BlockAttention& a) {
    return a.heads / a.store.kv_heads;
}
int64_t row_of(const BlockAttention& a, const Tile& tile, int64_t r) {
    return tile.runs->first_row + (tile.first + r) / per_head(a);
}
int64_t head_of(const BlockAttention& a, const Tile& tile, int64_t r) {
    return tile.kv_head * per_head(a) + (tile.first + r) % per_head(a);
}

void finish(const BlockAttention& a, const Tile& tile, int64_t r, const float* whole, float most,
            float total) {
    const int64_t H = a.store.head_size, at = row_of(a, tile, r) * a.heads + head_of(a, tile, r);
    const F32x16 factor = broadcast(total > 0 ? 1.0f / total : 0.0f);
    for (int64_t h = 0; h < H; h += kLanes) store(a.out + at * H + h, load(whole + h) * factor);
    a.lse[at] = total > 0 ? most + __builtin_logf(total) : kHidden;
}

void clear_segment(const BlockAttention& a, const Tile& tile, Space& space) {
    const int64_t H = a.store.head_size;
    for (int64_t r = 0; r < tile.count; ++r) {
        space.most[r] = kHidden, space.total[r] = 0;
        for (int64_t h = 0; h < H; h += kLanes) store(space.out + r * H + h, broadcast(0));
    }
}

void end_segment(const BlockAttention& a, const Tile& tile, Space& space) {
    const int64_t H = a.store.head_size;
    for (int64_t r = 0; r < tile.count; ++r) {
        const float* out = space.out + r * H;
        if (tile.parts) {
            float* part = tile.parts + r * part_floats(H);
            for (int64_t h = 0; h < H; h += kLanes) store(part + h, load(out + h));
            part[H] = space.most[r], part[H + 1] = space.total[r];
        } else {
            add_state(space.most[r], space.total[r], out, H, space.whole_most[r], space.whole_total[r],
                      space.whole + r * H);
        }
    }
}

template <int kBits, int kRows>
void walk_strip(const BlockAttention& a, Space& space, const Head& head, int64_t position, int64_t first) {
    const BlockStore& s = a.store;
    const int64_t H = s.head_size, L = s.block_tokens;
    score<kBits, kRows>(s, head, space.q + first * H, space.rows, space.scores);
    bool seen = false;
    for (int64_t i = 0; i < kRows; ++i) {
        const int64_t r = first + i;
        if (a.window) {
            const int64_t first = space.positions[r] - a.window + 1;
            hide(a.sink - position, first - position, L, space.scores + i * L);
        }
        seen |= weigh(space.scores + i * L, L, H, space.most[r], space.total[r], space.out + r * H);
    }
    if (seen) add_values<kBits, kRows>(s, head, space.scores, space.rows, space.out + first * H);
}

template <int kBits>
void walk_block(const BlockAttention& a, const Tile& tile, Space& space, const Head& head, int64_t position) {
    int64_t r = 0;
    for (; r + kStripRows <= tile.count; r += kStripRows)
        walk_strip<kBits, kStripRows>(a, space, head, position, r);
    for (; r < tile.count; ++r) walk_strip<kBits, 1>(a, space, head, position, r);
}

inline void fetch(const uint8_t* from, int64_t bytes) {
    for (int64_t i = 0; i < bytes; i += 64) prefetch(from + i);
}

// The blocks of the tile's runs in its range of positions, segment by segment.
template <int kBits>
void walk(const BlockAttention& a, const Tile& tile, Space& space) {
    const BlockStore& s = a.store;
    int64_t segment = -1, low = INT64_MAX;
    for (int64_t r = 0; r < tile.count; ++r) low = space.positions[r] < low ? space.positions[r] : low;
    for (int64_t i = 0; i < tile.num_runs; ++i) {
        const BlockRun& run = tile.runs[i];
        const auto place = [&](int64_t offset) {
            const uint8_t* page = s.arena + a.pages[run.first_page + offset / s.page_tokens] * s.page_bytes;
            return head_at(s, page, offset % s.page_tokens / s.block_tokens, tile.kv_head);
        };
        for (int64_t offset = 0; offset < run.length; offset += s.block_tokens) {
            const int64_t position = run.start + offset;
            if (position < tile.from || position >= tile.to) continue;
            if (a.window && position >= a.sink && position + s.block_tokens <= low - a.window + 1)
                continue;  // no row sees it
            if (position / kSegmentTokens != segment) {
                if (segment >= 0) end_segment(a, tile, space);
                clear_segment(a, tile, space);
                segment = position / kSegmentTokens;
            }
            if (offset + s.block_tokens < run.length)
                fetch(place(offset + s.block_tokens).keys, s.head_bytes());
            walk_block<kBits>(a, tile, space, place(offset), position);
        }
    }
    if (segment >= 0) end_segment(a, tile, space);
}

template <int kBits>
void attend_tile(const BlockAttention& a, const Tile& tile) {
    const int64_t H = a.store.head_size, L = a.store.block_tokens;
    const int64_t floats = 3 * kTileRows * H + kStripRows * L;
    Space space;
    space.q = static_cast<float*>(
        scratch(Scratch::piece, floats * 4 + kStripRows * static_cast<int64_t>(sizeof(Rounded))));
    space.out = space.q + kTileRows * H;
    space.whole = space.out + kTileRows * H;
    space.scores = space.whole + kTileRows * H;
    space.rows = reinterpret_cast<Rounded*>(space.q + floats);
    for (int64_t r = 0; r < tile.count; ++r) {
        const int64_t row = row_of(a, tile, r);
        const float* q = a.q + row * a.q_stride + head_of(a, tile, r) * H;
        for (int64_t h = 0; h < H; h += kLanes) {
            store(space.q + r * H + h, load(q + h) * broadcast(a.scale));
            store(space.whole + r * H + h, broadcast(0));
        }
        space.whole_most[r] = kHidden, space.whole_total[r] = 0, space.positions[r] = a.positions[row];
        if (tile.parts) tile.parts[r * part_floats(H) + H] = kHidden;  // the segment may have no block
    }
    walk<kBits>(a, tile, space);
    for (int64_t r = 0; r < tile.count && !tile.parts; ++r)
        finish(a, tile, r, space.whole + r * H, space.whole_most[r], space.whole_total[r]);
}

// Adds up the segments that begin with this tile's.
void join(const BlockAttention& a, const Tile& tile) {
    const int64_t H = a.store.head_size, size = part_floats(H);
    auto* whole = static_cast<float*>(scratch(Scratch::piece, H * 4));
    for (int64_t r = 0; r < tile.count; ++r) {
        float most = kHidden, total = 0;
        for (int64_t h = 0; h < H; h += kLanes) store(whole + h, broadcast(0));
        for (int64_t i = 0; i < tile.joined; ++i) {
            const float* part = tile.parts + (i * tile.count + r) * size;
            add_state(part[H], part[H + 1], part, H, most, total, whole);
        }
        finish(a, tile, r, whole, most, total);
    }
}

// function(tile, segments) for every tile. Only tiles of few rows are cut into segments: others are many.
template <class Function>
void for_each_tile(const BlockAttention& a, const Function& function) {
    for (int64_t i = 0, next; i < a.num_runs; i = next) {
        const BlockRun& run = a.runs[i];
        for (next = i + 1; next < a.num_runs && a.runs[next].first_row == run.first_row;) ++next;
        const BlockRun& last = a.runs[next - 1];
        const int64_t rows = (run.end_row - run.first_row) * per_head(a);
        const int64_t begin = run.start / kSegmentTokens, end = last.start + last.length;
        const int64_t segments = rows <= kTileRows && end > 0 ? (end - 1) / kSegmentTokens + 1 - begin : 1;
        for (int64_t first = 0; first < rows; first += kTileRows) {
            const int64_t count = rows - first < kTileRows ? rows - first : kTileRows;
            for (int64_t kv_head = 0; kv_head < a.store.kv_heads; ++kv_head)
                function(Tile{&run, next - i, kv_head, first, count,
                              segments > 1 ? begin * kSegmentTokens : 0, INT64_MAX, nullptr, 0},
                         segments);
        }
    }
}

template <int kBits>
void attend(const BlockAttention& a) {
    const int64_t size = part_floats(a.store.head_size);
    int64_t count = 0, floats = 0;
    for_each_tile(a, [&](const Tile& tile, int64_t segments) {
        count += segments;
        if (segments > 1) floats += segments * tile.count * size;
    });
    auto* parts =
        static_cast<float*>(scratch(Scratch::call, floats * 4 + count * static_cast<int64_t>(sizeof(Tile))));
    auto* const tiles = reinterpret_cast<Tile*>(parts + floats);
    count = 0;
    for_each_tile(a, [&](Tile tile, int64_t segments) {
        for (int64_t i = 0; i < segments; ++i) {
            if (segments > 1) {
                tile.to = tile.from + kSegmentTokens;
                tile.parts = parts;
                tile.joined = i == 0 ? segments : 0;
                parts += tile.count * size;
            }
            tiles[count++] = tile;
            tile.from += kSegmentTokens;
        }
    });
    in_pieces(count, 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) attend_tile<kBits>(a, tiles[i]);
    });
    if (floats == 0) return;
    for_each_row(count, 4 * size, [&](int64_t i) {
        if (tiles[i].joined > 1) join(a, tiles[i]);
    });
}

void attend_any(const BlockAttention& a) {
    a.store.bits == 4 ? attend<4>(a) : attend<2>(a);
}

}  // namespace

constinit const BlockAttentionTable block_attention = {attend_any};

}  // namespace headrace::HR_LEVEL
