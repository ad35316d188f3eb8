// The pieces of work of one attention over pages: tiles, segments of tiles, and segments that several tiles
// read alike. Compiled once per level.
//
// Sequences that begin alike list the same pages. Where tiles of different spans read the same pages in a
// segment, they are walked as one: each key and value is fetched once for all of them, and meets as many rows
// as a prompt's would. Nothing says which sequences these are: the page numbers do. A row's sums do not
// depend on the rows beside it, so the results are the same bits either way.
//
// Papers   https://arxiv.org/abs/2402.05099 (Hydragen: attention of many queries over their shared prefix);
//          https://arxiv.org/abs/2501.01005 (FlashInfer: a plan of work, then a run over it)
#pragma once

#include "headrace/attention_tiles.h"
#include "headrace/parallel.h"

namespace headrace::HR_LEVEL {
namespace {

// A cut tile's first segment; the others follow it, and so do their parts.
struct Cut {
    const Tile* first;
    int64_t segments;
};

// Tiles that are walked as one, and their rows together.
struct Stack {
    Tile *first, *last;
    int64_t rows;
};

// All of a call's work. Pieces are the first tiles of their stacks.
struct Worklist {
    Tile* tiles;
    const Tile** pieces;
    Cut* cuts;
    Stack* buckets;  // [num_buckets], more than there are tiles: by what they read, the stack to add to
    int64_t num_tiles, num_pieces, num_cuts, num_buckets;
};

// The part of a run in [from, to), if any.
struct Part {
    const Run* run;
    int64_t begin, end;
};

// The first part of these runs in the tile's positions that ends after `done`.
inline Part part_after(const Tile& tile, int64_t done) {
    for (int64_t i = 0; i < tile.num_runs; ++i) {
        const Run& run = tile.runs[i];
        const int64_t end = run.start + run.length;
        const Part part{&run, run.start > tile.from ? run.start : tile.from, end < tile.to ? end : tile.to};
        if (part.end > done && part.begin < part.end) return part;
    }
    return {nullptr, 0, 0};
}

inline const int64_t* pages_of(const AttentionRows& a, const Part& part, int64_t page_tokens) {
    return a.pages + part.run->first_page + (part.begin - part.run->start) / page_tokens;
}

inline bool same_part(const AttentionRows& a, const Part& x, const Part& y, int64_t page_tokens) {
    if (x.begin != y.begin || x.end != y.end || (x.run->start - y.run->start) % page_tokens != 0)
        return false;
    const int64_t *i = pages_of(a, x, page_tokens), *j = pages_of(a, y, page_tokens);
    const int64_t inside = (x.begin - x.run->start) % page_tokens;
    for (int64_t token = 0; token < inside + x.end - x.begin; token += page_tokens)
        if (*i++ != *j++) return false;
    return true;
}

// Whether tiles of the same positions read the same tokens of the same pages.
inline bool same_pages(const AttentionRows& a, const Tile& x, const Tile& y, int64_t page_tokens) {
    for (int64_t done = x.from;;) {
        const Part part = part_after(x, done), other = part_after(y, done);
        if (!part.run || !other.run) return !part.run && !other.run;
        if (!same_part(a, part, other, page_tokens)) return false;
        done = part.end;
    }
}

// The stack of tiles that read what this one reads, or an empty one.
inline Stack& stack_of(const AttentionRows& a, Worklist& list, const Tile& tile, const Part& part,
                       int64_t page_tokens) {
    const auto page = static_cast<uint64_t>(*pages_of(a, part, page_tokens));
    const uint64_t mixed = (page * 64 + static_cast<uint64_t>(tile.kv_head)) * 0x9E3779B97F4A7C15u;
    for (int64_t i = static_cast<int64_t>((mixed >> 32) % static_cast<uint64_t>(list.num_buckets));;
         i = (i + 1) % list.num_buckets) {
        Stack& stack = list.buckets[i];
        if (!stack.first || (stack.first->kv_head == tile.kv_head && stack.first->from == tile.from &&
                             same_pages(a, *stack.first, tile, page_tokens)))
            return stack;
    }
}

// Adds the tile to the stack that reads what it reads, if one has room; otherwise it begins one.
inline void add_tile(const AttentionRows& a, Worklist& list, Tile& tile, int64_t page_tokens) {
    if (const Part part = part_after(tile, tile.from); part.run) {
        Stack& stack = stack_of(a, list, tile, part, page_tokens);
        if (stack.first && stack.rows + tile.count <= kTileRows) {
            stack.last->next = &tile;
            stack = {stack.first, &tile, stack.rows + tile.count};
            return;
        }
        stack = {&tile, &tile, tile.count};
    }
    list.pieces[list.num_pieces++] = &tile;
}

// Cuts the tile into its segments, whose parts begin at `parts`.
template <class Batch>
void cut(const Batch& a, Worklist& list, Tile tile, int64_t segments, float*& parts) {
    list.cuts[list.num_cuts++] = {list.tiles + list.num_tiles, segments};
    for (int64_t i = 0; i < segments; ++i) {
        tile.to = tile.from + kSegmentTokens;
        tile.parts = parts;
        parts += tile.count * part_floats(a.store.head_size);
        Tile& segment = list.tiles[list.num_tiles++] = tile;
        add_tile(a, list, segment, a.store.page_tokens);
        tile.from = tile.to;
    }
}

// Adds up the parts of a tile's segments.
template <class Batch>
void join(const Batch& a, const Cut& cut) {
    const int64_t H = a.store.head_size, size = part_floats(H), count = cut.first->count;
    auto* whole = static_cast<float*>(scratch(Scratch::piece, H * 4));
    for (int64_t r = 0; r < count; ++r) {
        float most = kHidden, total = 0;
        for (int64_t h = 0; h < H; h += kLanes) store(whole + h, broadcast(0));
        for (int64_t i = 0; i < cut.segments; ++i) {
            const float* part = cut.first->parts + (i * count + r) * size;
            add_state(part[H], part[H + 1], part, H, most, total, whole);
        }
        finish(a, place_of(a, *cut.first, r), whole, most, total);
    }
}

// for_each_tile(function) calls function(tile, segments); a tile of several begins at the first one's
// position. The list lies in the calling thread's scratch.
template <class Batch, class ForEachTile>
Worklist plan(const Batch& a, const ForEachTile& for_each_tile) {
    int64_t tiles = 0, cuts = 0, floats = 0;
    for_each_tile([&](const Tile& tile, int64_t segments) {
        tiles += segments;
        if (segments > 1) ++cuts, floats += segments * tile.count * part_floats(a.store.head_size);
    });
    Worklist list{};
    list.num_buckets = 2 * tiles + 1;
    const int64_t bytes = floats * 4 + tiles * static_cast<int64_t>(sizeof(Tile) + sizeof(Tile*)) +
                          cuts * static_cast<int64_t>(sizeof(Cut)) +
                          list.num_buckets * static_cast<int64_t>(sizeof(Stack));
    auto* parts = static_cast<float*>(scratch(Scratch::call, bytes));
    list.tiles = reinterpret_cast<Tile*>(parts + floats);
    list.pieces = reinterpret_cast<const Tile**>(list.tiles + tiles);
    list.cuts = reinterpret_cast<Cut*>(list.pieces + tiles);
    list.buckets = reinterpret_cast<Stack*>(list.cuts + cuts);
    for (int64_t i = 0; i < list.num_buckets; ++i) list.buckets[i] = {};
    for_each_tile([&](const Tile& tile, int64_t segments) {
        if (segments > 1) {
            cut(a, list, tile, segments, parts);
        } else {
            list.pieces[list.num_pieces++] = &(list.tiles[list.num_tiles++] = tile);
        }
    });
    return list;
}

// attend_tile(tile) for every piece of the list, then what was cut is joined.
template <class Batch, class AttendTile>
void run(const Batch& a, const Worklist& list, const AttendTile& attend_tile) {
    in_pieces(list.num_pieces, 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) attend_tile(*list.pieces[i]);
    });
    for_each_row(list.num_cuts, 4 * part_floats(a.store.head_size),
                 [&](int64_t i) { join(a, list.cuts[i]); });
}

}  // namespace
}  // namespace headrace::HR_LEVEL
