// How a tile walks its pages, chunk by chunk: see attention_tiles.h. Compiled once per level.
//
// Chunks end at absolute positions, as segments do. In a chunk: scores, then the maximum, exponentials and
// values. A block that a row may not see changes nothing, to the bit.
#pragma once

#include "paged_attention/strip.h"

namespace headrace::HR_LEVEL {
namespace {

// Memory of a tile at work.
struct Space : TileSpace {
    float* scores;  // [kTileRows][kChunkTokens]
    float* wide;    // [kGroupBlocks][16 H], widened keys or values
    Gathered rows[kTileRows];
    Strip strips[kTileRows / kStripRows + 2];
    int64_t num_strips;
};

inline int64_t space_floats(int64_t head_size) {
    return tile_floats(head_size) + kTileRows * kChunkTokens + kGroupBlocks * kBlockTokens * head_size;
}

// function<whether to fetch ahead>(strip, blocks, from, to) for every strip and the blocks that it sees.
// Where many rows meet a block, a few blocks at a time are widened first, by widen(block, to), or stay in the
// first cache; what comes after them is fetched once.
template <class T, class Widen, class Function>
inline void for_each_strip(Space& space, const Blocks<T>& chunk, int64_t head_size, const Widen& widen,
                           const Function& function) {
    const bool widens = !kIsFloat<T> && space.count > kStripRows;
    for (int64_t first = 0; first < chunk.count; first += kGroupBlocks) {
        const int64_t end = first + kGroupBlocks < chunk.count ? first + kGroupBlocks : chunk.count;
        Block<float> wide[kChunkBlocks];
        if (widens)
            for (int64_t b = first; b < end; ++b)
                wide[b] = widen(b, space.wide + (b - first) * kBlockTokens * head_size);
        for (int64_t i = 0; i < space.num_strips; ++i) {
            const Strip& strip = space.strips[i];
            const int64_t from = first > strip.from ? first : strip.from,
                          to = end < strip.to ? end : strip.to;
            if (from >= to) continue;
            if (widens) {
                const Blocks<float> widened{wide, end, kBlockTokens, wide + end - 1};
                function.template operator()<false>(strip, widened, from, to);
            } else if (i == 0) {
                function.template operator()<true>(strip, chunk, from, to);
            } else {
                function.template operator()<false>(strip, chunk, from, to);
            }
        }
    }
}

template <class T>
void score_chunk(Space& space, const Blocks<T>& chunk, int64_t head_size) {
    const auto widen = [&](int64_t b, float* to) -> Block<float> {
        widen_keys(chunk, b, head_size, to);
        return {to, nullptr, chunk.at[b].key_scales, nullptr, 0, 0};
    };
    for_each_strip(space, chunk, head_size, widen,
                   [&]<bool kFetch>(const Strip& strip, const auto& blocks, int64_t from, int64_t to) {
                       score<kFetch>(strip, blocks, from, to, head_size, space.q + strip.row * head_size,
                                     space.scores + strip.row * kChunkTokens);
                   });
}

template <class T>
void add_chunk(Space& space, const Blocks<T>& chunk, int64_t head_size) {
    const auto widen = [&](int64_t b, float* to) -> Block<float> {
        widen_values(chunk, b, head_size, to);
        return {nullptr, to, nullptr, nullptr, 0, chunk.at[b].count};
    };
    for_each_strip(space, chunk, head_size, widen,
                   [&]<bool kFetch>(const Strip& strip, const auto& blocks, int64_t from, int64_t to) {
                       add_values<kFetch>(strip, blocks, from, to, head_size,
                                          space.scores + strip.row * kChunkTokens,
                                          space.out + strip.row * head_size);
                   });
}

// Which of the chunk's blocks each strip may see.
template <class T>
void look(Space& space, const Blocks<T>& chunk, int64_t window, int64_t sink) {
    for (int64_t i = 0; i < space.num_strips; ++i) {
        Strip& strip = space.strips[i];
        strip.from = 0, strip.to = chunk.count;
        while (strip.to > 0 && chunk.at[strip.to - 1].position > strip.high) --strip.to;
        while (window && strip.from < strip.to && chunk.at[strip.from].position >= sink &&
               chunk.at[strip.from].position + kBlockTokens - 1 <= strip.low - window)
            ++strip.from;
    }
}

template <class T>
void walk_chunk(const PagedAttention& a, Space& space, const Blocks<T>& chunk) {
    const int64_t H = a.store.head_size;
    look(space, chunk, a.window, a.sink);
    score_chunk(space, chunk, H);
    for (int64_t i = 0; i < space.num_strips; ++i) {
        const Strip& strip = space.strips[i];
        for (int64_t r = strip.row; strip.from < strip.to && r < strip.row + strip.rows; ++r) {
            float* scores = space.scores + r * kChunkTokens;
            for (int64_t b = strip.from; b < strip.to; ++b)
                hide(chunk.at[b], space.positions[r], a.window, a.sink, scores + b * kBlockTokens);
            weigh(chunk.at, strip.from, strip.to, H, scores, space.rows[r], space.out + r * H);
        }
    }
    add_chunk(space, chunk, H);
}

// The blocks of one segment, in order; then its state goes to those before it, or to the tile's parts.
template <class T>
void walk_segment(const PagedAttention& a, Space& space, const Block<T>* blocks, int64_t count) {
    const int64_t H = a.store.head_size;
    for (int64_t r = 0; r < space.count; ++r) {
        space.rows[r] = {kHidden, broadcast(0)};
        for (int64_t h = 0; h < H; h += kLanes) store(space.out + r * H + h, broadcast(0));
    }
    fetch_first<T>({blocks, count, a.store.page_tokens, blocks + count - 1}, H);
    for (int64_t first = 0, end; first < count; first = end) {
        const int64_t chunk = blocks[first].position / kChunkTokens;
        for (end = first + 1; end < count && blocks[end].position / kChunkTokens == chunk;) ++end;
        walk_chunk<T>(a, space, {blocks + first, end - first, a.store.page_tokens, blocks + count - 1});
    }
    for (int64_t r = 0; r < space.count; ++r)
        end_segment(space, r, space.rows[r].most, sum(space.rows[r].sum), H);
}

// Positions that some of these rows may see, within the tile's own.
struct Seen {
    int64_t begin, end;
};

inline Seen seen_from(const PagedAttention& a, const Tile& tile, int64_t low, int64_t high) {
    const Run& last = tile.runs[tile.num_runs - 1];
    Seen seen{a.window && !a.sink && low >= a.window ? low - a.window + 1 : 0, high + 1};
    if (seen.end > last.start + last.length) seen.end = last.start + last.length;
    if (seen.begin < tile.from) seen.begin = tile.from;
    if (seen.end > tile.to) seen.end = tile.to;
    return seen;
}

// By the rows at positions[0], positions[1], ..., `count` of them.
inline Seen seen_by(const PagedAttention& a, const Tile& tile, const int64_t* positions, int64_t count) {
    int64_t low = INT64_MAX, high = -1;
    for (int64_t i = 0; i < count; ++i) {
        if (positions[i] < low) low = positions[i];
        if (positions[i] > high) high = positions[i];
    }
    return seen_from(a, tile, low, high);
}

template <class T>
inline Block<T> block_at(const PageStore& s, const uint8_t* page, int64_t kv_head, int64_t inside,
                         int64_t position, int64_t count) {
    const uint8_t *keys = page + s.k_at + s.head_at(kv_head), *values = page + s.v_at + s.head_at(kv_head);
    const int64_t scales = s.scale_bytes();
    return {reinterpret_cast<const T*>(keys + scales) + inside,
            reinterpret_cast<const T*>(values + scales) + inside * s.head_size,
            scales ? reinterpret_cast<const float*>(keys) + inside : nullptr,
            scales ? reinterpret_cast<const float*>(values) + inside : nullptr,
            position,
            count < kBlockTokens ? count : kBlockTokens};
}

// Collects the blocks that some row of the tile may see, segment by segment.
template <class T>
void walk(const PagedAttention& a, const Tile& tile, Space& space) {
    const PageStore& s = a.store;
    const Seen seen = seen_by(a, tile, space.positions, space.count);
    Block<T> blocks[kSegmentBlocks];
    int64_t count = 0;
    for (int64_t i = 0; i < tile.num_runs; ++i) {
        const Run& run = tile.runs[i];
        const int64_t skipped = seen.begin > run.start ? (seen.begin - run.start) / kBlockTokens : 0;
        for (int64_t offset = skipped * kBlockTokens; offset < run.length; offset += kBlockTokens) {
            const int64_t position = run.start + offset;
            if (position >= seen.end) break;
            if (count && position / kSegmentTokens != blocks->position / kSegmentTokens) {
                walk_segment(a, space, blocks, count);
                count = 0;
            }
            const uint8_t* page = s.arena + a.pages[run.first_page + offset / s.page_tokens] * s.page_bytes;
            blocks[count++] =
                block_at<T>(s, page, tile.kv_head, offset % s.page_tokens, position, run.length - offset);
        }
    }
    if (count) walk_segment(a, space, blocks, count);
}

}  // namespace
}  // namespace headrace::HR_LEVEL
