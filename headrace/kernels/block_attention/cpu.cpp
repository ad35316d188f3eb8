// block_attention for processors. Compiled once per level. See attention_tiles.h for what a tile is, and
// block.h for what is done with a block.
//
// Bounds, per token and kv head: H (bits + 16 / group + 16 / channels) / 4 bytes read; 2 M H products of
// bytes for M rows that share the head.
#include "block_attention/block.h"
#include "headrace/attention_worklist.h"

namespace headrace::HR_LEVEL {
namespace {

// Memory of a tile at work.
struct Space : TileSpace {
    float* scores;  // [kStripRows][block_tokens]
    Rounded* rows;  // [kGroups][kStripRows]
    Gathered gathered[kTileRows];
};

void clear_segment(const BlockAttention& a, Space& space) {
    const int64_t H = a.store.head_size;
    for (int64_t r = 0; r < space.count; ++r) {
        space.gathered[r] = {kHidden, broadcast(0)};
        for (int64_t h = 0; h < H; h += kLanes) store(space.out + r * H + h, broadcast(0));
    }
}

void end_segment(const BlockAttention& a, Space& space) {
    for (int64_t r = 0; r < space.count; ++r)
        end_segment(space, r, space.gathered[r].most, sum(space.gathered[r].sum), a.store.head_size);
}

template <int kBits, int kRows>
void walk_strip(const BlockAttention& a, Space& space, const Head& head, int64_t position, int64_t first) {
    const BlockStore& s = a.store;
    const int64_t H = s.head_size, L = s.block_tokens;
    score<kBits, kRows>(s, head, space.q + first * H, space.rows, space.scores);
    for (int64_t i = 0; a.window && i < kRows; ++i) {
        const int64_t begin = space.positions[first + i] - a.window + 1;
        hide(a.sink - position, begin - position, L, space.scores + i * L);
    }
    float* out = space.out + first * H;
    if (weigh<kRows>(space.scores, L, H, space.gathered + first, out))
        add_values<kBits, kRows>(s, head, space.scores, space.rows, out);
}

template <int kBits>
void walk_block(const BlockAttention& a, Space& space, const Head& head, int64_t position) {
    int64_t r = 0;
    for (; r + kStripRows <= space.count; r += kStripRows)
        walk_strip<kBits, kStripRows>(a, space, head, position, r);
    for (; r < space.count; ++r) walk_strip<kBits, 1>(a, space, head, position, r);
}

// The blocks of the tile's runs in its range of positions, segment by segment.
template <int kBits>
void walk(const BlockAttention& a, const Tile& tile, Space& space) {
    const BlockStore& s = a.store;
    int64_t segment = -1, low = INT64_MAX;
    for (int64_t r = 0; r < space.count; ++r) low = space.positions[r] < low ? space.positions[r] : low;
    for (int64_t i = 0; i < tile.num_runs; ++i) {
        const Run& run = tile.runs[i];
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
                if (segment >= 0) end_segment(a, space);
                clear_segment(a, space);
                segment = position / kSegmentTokens;
            }
            Head head = place(offset);
            const int64_t next = offset + kAhead * s.block_tokens;
            head.ahead = place(next < run.length ? next : run.length - s.block_tokens).keys - head.keys;
            walk_block<kBits>(a, space, head, position);
        }
    }
    if (segment >= 0) end_segment(a, space);
}

template <int kBits>
void attend_tile(const BlockAttention& a, const Tile& tile) {
    const int64_t own = tile_floats(a.store.head_size), scores = kStripRows * a.store.block_tokens;
    auto* floats = static_cast<float*>(scratch(
        Scratch::piece, (own + scores) * 4 + kGroups * kStripRows * static_cast<int64_t>(sizeof(Rounded))));
    Space space;
    begin_tile(a, tile, floats, space);
    space.scores = floats + own;
    space.rows = reinterpret_cast<Rounded*>(space.scores + scores);
    walk<kBits>(a, tile, space);
    end_tile(a, space);
}

// function(tile, segments) for every tile. Only tiles of few rows are cut into segments: others are many.
template <class Function>
void for_each_tile(const BlockAttention& a, const Function& function) {
    for (int64_t i = 0, next; i < a.num_runs; i = next) {
        const Run& run = a.runs[i];
        for (next = i + 1; next < a.num_runs && a.runs[next].first_row == run.first_row;) ++next;
        const Run& last = a.runs[next - 1];
        const int64_t rows = (run.end_row - run.first_row) * per_head(a);
        const int64_t begin = run.start / kSegmentTokens, end = last.start + last.length;
        const int64_t segments = rows <= kTileRows && end > 0 ? (end - 1) / kSegmentTokens + 1 - begin : 1;
        for (int64_t first = 0; first < rows; first += kTileRows) {
            const int64_t count = rows - first < kTileRows ? rows - first : kTileRows;
            for (int64_t kv_head = 0; kv_head < a.store.kv_heads; ++kv_head)
                function(Tile{&run, next - i, kv_head, first, count,
                              segments > 1 ? begin * kSegmentTokens : 0, INT64_MAX, nullptr, nullptr},
                         segments);
        }
    }
}

template <int kBits>
void attend(const BlockAttention& a) {
    const Worklist list = plan(a, [&](const auto& function) { for_each_tile(a, function); });
    run(a, list, [&](const Tile& tile) { attend_tile<kBits>(a, tile); });
}

void attend_any(const BlockAttention& a) {
    a.store.bits == 4 ? attend<4>(a) : attend<2>(a);
}

}  // namespace

constinit const BlockAttentionTable block_attention = {attend_any};

}  // namespace headrace::HR_LEVEL
