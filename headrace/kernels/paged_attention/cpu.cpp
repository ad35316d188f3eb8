// paged_attention for processors. Compiled once per level. See kernel.h for the layout of pages.
//
// Blocks of sixteen tokens are walked by position in chunks of 256, whose borders are absolute positions:
// each chunk's scores, then its maximum, exponentials and values. What a row computes depends on its own
// position and on which pages exist, not on the rows beside it or on how its prompt was cut: a block that a
// row may not see changes nothing, to the bit.
//
// Bounds, per token and kv head: 2 H items read; 2 M H multiply-adds for M rows that share the head.
#include "headrace/parallel.h"
#include "headrace/simd_math.h"
#include "paged_attention/kernel.h"

namespace headrace::HR_LEVEL {
namespace {

constexpr int64_t kBlockTokens = 16;
constexpr int64_t kChunkTokens = 256;
constexpr int64_t kTileRows = 16;  // rows (of one kv head) that walk the pages together
#if defined(HR_LEVEL_AVX512)
constexpr int kScoreBlocks = 2, kValueVectors = 4;
#else
constexpr int kScoreBlocks = 1, kValueVectors = 1;
#endif
constexpr float kHidden = -__builtin_huge_valf();

template <class T>
struct Block {
    const T* keys;    // [H][page_tokens]
    const T* values;  // [16][H]
    int64_t position, count;
    const float *key_scales, *value_scales;  // of int8 codes
};

template <class T>
constexpr bool kScaled = false;
template <>
constexpr bool kScaled<int8_t> = true;

// The rows of one span that share a kv head, a few at a time: row r is query r / per_head, head r % per_head.
struct Tile {
    const Run* runs;
    int64_t num_runs;
    int64_t kv_head, first, count;
};

struct Space {
    float* q;       // [kTileRows][H], scaled
    float* scores;  // [kTileRows][kChunkTokens]
    float* out;     // [kTileRows][H]
    float most[kTileRows];
    F32x16 sums[kTileRows];
    int64_t positions[kTileRows];
};

template <int kRows, class T>
inline void score_blocks(const PageStore& s, const Block<T>* blocks, const float* q, float* scores) {
    F32x16 even[kRows][kScoreBlocks], odd[kRows][kScoreBlocks];
    for (int r = 0; r < kRows; ++r)
        for (int b = 0; b < kScoreBlocks; ++b) even[r][b] = odd[r][b] = broadcast(0);
    for (int64_t h = 0; h < s.head_size; h += 2) {
        for (int b = 0; b < kScoreBlocks; ++b) {
            const F32x16 first = load(blocks[b].keys + h * s.page_tokens);
            const F32x16 second = load(blocks[b].keys + (h + 1) * s.page_tokens);
            for (int r = 0; r < kRows; ++r) {
                even[r][b] = fma(first, broadcast(q[r * s.head_size + h]), even[r][b]);
                odd[r][b] = fma(second, broadcast(q[r * s.head_size + h + 1]), odd[r][b]);
            }
        }
    }
    for (int r = 0; r < kRows; ++r) {
        for (int b = 0; b < kScoreBlocks; ++b) {
            F32x16 score = even[r][b] + odd[r][b];
            if constexpr (kScaled<T>) score = score * load(blocks[b].key_scales);
            store(scores + r * kChunkTokens + b * kBlockTokens, score);
        }
    }
}

template <int kRows, class T>
void score_rows(const PageStore& s, Block<T>* blocks, int64_t count, const float* q, float* scores) {
    if (count % kScoreBlocks) blocks[count] = blocks[count - 1];  // computed, then not looked at
    for (int64_t b = 0; b < count; b += kScoreBlocks)
        score_blocks<kRows>(s, blocks + b, q, scores + b * kBlockTokens);
}

// Tokens that the row at `position` may not see get minus infinity.
template <class T>
void hide(const Block<T>& block, int64_t position, int64_t window, float* scores) {
    const int64_t low =
        window ? position - window - block.position : -1;  // offsets <= low and > high are hidden
    const int64_t high = position - block.position;
    if (low < 0 && high >= kBlockTokens - 1 && block.count == kBlockTokens) return;
    for (int64_t i = 0; i < kBlockTokens; ++i)
        if (i <= low || i > high || i >= block.count) scores[i] = kHidden;
}

// Scores to weights: raises the row's maximum, rescales what it has, and leaves exp(score - maximum), times
// the value's scale if it has one.
template <class T>
inline void weigh(Space& space, int64_t r, const Block<T>* blocks, int64_t count, int64_t head_size) {
    float* scores = space.scores + r * kChunkTokens;
    F32x16 most = broadcast(kHidden);
    for (int64_t b = 0; b < count; ++b) most = max(load(scores + b * kBlockTokens), most);
    const float chunk = largest(most), raised = chunk > space.most[r] ? chunk : space.most[r];
    if (raised == kHidden) {
        for (int64_t i = 0; i < count * kBlockTokens; ++i) scores[i] = 0;
        return;
    }
    const F32x16 base = broadcast(raised);
    if (raised != space.most[r]) {
        const F32x16 factor = exp(broadcast(space.most[r]) - base);
        space.sums[r] = space.sums[r] * factor;
        float* out = space.out + r * head_size;
        for (int64_t h = 0; h < head_size; h += kLanes) store(out + h, load(out + h) * factor);
        space.most[r] = raised;
    }
    for (int64_t b = 0; b < count; ++b) {
        const F32x16 weight = exp(load(scores + b * kBlockTokens) - base);
        space.sums[r] = space.sums[r] + weight;
        if constexpr (kScaled<T>) {
            store(scores + b * kBlockTokens, weight * load(blocks[b].value_scales));
        } else {
            store(scores + b * kBlockTokens, weight);
        }
    }
}

template <int kRows, int kVectors, class T>
inline void add_values(const PageStore& s, const Block<T>* blocks, int64_t count, const float* weights,
                       float* out, int64_t h) {
    F32x16 total[kRows][kVectors];
    for (int r = 0; r < kRows; ++r)
        for (int v = 0; v < kVectors; ++v) total[r][v] = load(out + r * s.head_size + h + v * kLanes);
    for (int64_t b = 0; b < count; ++b) {
        const T* values = blocks[b].values + h;
        const float* weight = weights + b * kBlockTokens;
        for (int64_t i = 0; i < blocks[b].count; ++i, values += s.head_size) {
            F32x16 value[kVectors];
            for (int v = 0; v < kVectors; ++v) value[v] = load(values + v * kLanes);
            for (int r = 0; r < kRows; ++r)
                for (int v = 0; v < kVectors; ++v)
                    total[r][v] = fma(broadcast(weight[r * kChunkTokens + i]), value[v], total[r][v]);
        }
    }
    for (int r = 0; r < kRows; ++r)
        for (int v = 0; v < kVectors; ++v) store(out + r * s.head_size + h + v * kLanes, total[r][v]);
}

template <int kRows, class T>
void value_rows(const PageStore& s, const Block<T>* blocks, int64_t count, const float* weights, float* out) {
    int64_t h = 0;
    for (; h + kValueVectors * kLanes <= s.head_size; h += kValueVectors * kLanes)
        add_values<kRows, kValueVectors>(s, blocks, count, weights, out, h);
    for (; h < s.head_size; h += kLanes) add_values<kRows, 1>(s, blocks, count, weights, out, h);
}

// function.template operator()<kRows>(first row) over the rows, four or two or one at a time.
template <class Function>
inline void in_small_tiles(int64_t rows, const Function& function) {
    int64_t r = 0;
    for (; r + 4 <= rows; r += 4) function.template operator()<4>(r);
    for (; r + 2 <= rows; r += 2) function.template operator()<2>(r);
    if (r < rows) function.template operator()<1>(r);
}

template <class T>
void walk_chunk(const PagedAttention& a, const Tile& tile, Space& space, Block<T>* blocks, int64_t count) {
    const PageStore& s = a.store;
    in_small_tiles(tile.count, [&]<int kRows>(int64_t r) {
        score_rows<kRows>(s, blocks, count, space.q + r * s.head_size, space.scores + r * kChunkTokens);
    });
    for (int64_t r = 0; r < tile.count; ++r) {
        for (int64_t b = 0; b < count; ++b)
            hide(blocks[b], space.positions[r], a.window, space.scores + r * kChunkTokens + b * kBlockTokens);
        weigh(space, r, blocks, count, s.head_size);
    }
    in_small_tiles(tile.count, [&]<int kRows>(int64_t r) {
        value_rows<kRows>(s, blocks, count, space.scores + r * kChunkTokens, space.out + r * s.head_size);
    });
}

// Collects the blocks that some row of the tile may see, chunk by chunk.
template <class T>
void walk(const PagedAttention& a, const Tile& tile, Space& space) {
    const PageStore& s = a.store;
    int64_t low = space.positions[0], high = space.positions[0];
    for (int64_t r = 1; r < tile.count; ++r) {
        if (space.positions[r] < low) low = space.positions[r];
        if (space.positions[r] > high) high = space.positions[r];
    }
    const int64_t hidden_to = a.window ? low - a.window : -1;  // no row sees positions up to here
    Block<T> blocks[kChunkTokens / kBlockTokens + 1];
    int64_t count = 0, chunk = -1;
    for (int64_t i = 0; i < tile.num_runs; ++i) {
        const Run& run = tile.runs[i];
        for (int64_t offset = 0; offset < run.length; offset += kBlockTokens) {
            const int64_t position = run.start + offset, rest = run.length - offset;
            if (position > high) break;
            if (position + kBlockTokens - 1 <= hidden_to) continue;
            if (position / kChunkTokens != chunk && count) {
                walk_chunk(a, tile, space, blocks, count);
                count = 0;
            }
            chunk = position / kChunkTokens;
            const uint8_t* page = s.arena + a.pages[run.first_page + offset / s.page_tokens] * s.page_bytes;
            const int64_t inside = offset % s.page_tokens, head = tile.kv_head * s.head_bytes();
            const uint8_t *keys = page + s.k_at + head, *values = page + s.v_at + head;
            blocks[count++] = {reinterpret_cast<const T*>(keys + s.scale_bytes()) + inside,
                               reinterpret_cast<const T*>(values + s.scale_bytes()) + inside * s.head_size,
                               position,
                               rest < kBlockTokens ? rest : kBlockTokens,
                               reinterpret_cast<const float*>(keys) + inside,
                               reinterpret_cast<const float*>(values) + inside};
        }
    }
    if (count) walk_chunk(a, tile, space, blocks, count);
}

template <class T>
void attend_tile(const PagedAttention& a, const Tile& tile) {
    const int64_t H = a.store.head_size, per_head = a.heads / a.store.kv_heads;
    Space space = {};
    float* memory = static_cast<float*>(scratch(Scratch::piece, kTileRows * (2 * H + kChunkTokens) * 4));
    space.q = memory, space.out = memory + kTileRows * H, space.scores = memory + 2 * kTileRows * H;
    for (int64_t r = 0; r < tile.count; ++r) {
        const int64_t row = tile.runs->first_row + (tile.first + r) / per_head;
        const int64_t head = tile.kv_head * per_head + (tile.first + r) % per_head;
        const float* q = a.q + row * a.q_stride + head * H;
        for (int64_t h = 0; h < H; h += kLanes) {
            store(space.q + r * H + h, load(q + h) * broadcast(a.scale));
            store(space.out + r * H + h, broadcast(0));
        }
        space.most[r] = kHidden, space.sums[r] = broadcast(0), space.positions[r] = a.positions[row];
    }
    walk<T>(a, tile, space);
    for (int64_t r = 0; r < tile.count; ++r) {
        const int64_t row = tile.runs->first_row + (tile.first + r) / per_head;
        const int64_t head = tile.kv_head * per_head + (tile.first + r) % per_head;
        const float total = sum(space.sums[r]);
        const F32x16 factor = broadcast(total > 0 ? 1.0f / total : 0.0f);
        float* out = a.out + (row * a.heads + head) * H;
        for (int64_t h = 0; h < H; h += kLanes) store(out + h, load(space.out + r * H + h) * factor);
        a.lse[row * a.heads + head] = total > 0 ? space.most[r] + __builtin_logf(total) : kHidden;
    }
}

int64_t tiles_of(const PagedAttention& a, const Run& run) {
    const int64_t rows = (run.end_row - run.first_row) * (a.heads / a.store.kv_heads);
    return (rows + kTileRows - 1) / kTileRows * a.store.kv_heads;
}

template <class T>
void attend(const PagedAttention& a) {
    // Tiles are numbered span by span; a span's last tiles see most tokens, so they are taken first.
    int64_t total = 0;
    for (int64_t i = 0; i < a.num_runs; ++i)
        if (i == 0 || a.runs[i].first_row != a.runs[i - 1].first_row) total += tiles_of(a, a.runs[i]);
    in_pieces(total, 1, [&](int64_t begin, int64_t end) {
        int64_t number = 0;
        for (int64_t i = 0, next; i < a.num_runs && number < end; i = next) {
            const Run& run = a.runs[i];
            for (next = i + 1; next < a.num_runs && a.runs[next].first_row == run.first_row;) ++next;
            const int64_t tiles = tiles_of(a, run), per_head = a.heads / a.store.kv_heads;
            const int64_t rows = (run.end_row - run.first_row) * per_head;
            for (int64_t t = begin > number ? begin - number : 0; t < tiles && number + t < end; ++t) {
                const int64_t reversed = tiles - 1 - t;
                const int64_t first = reversed / a.store.kv_heads * kTileRows;
                attend_tile<T>(a, {&run, next - i, reversed % a.store.kv_heads, first,
                                   rows - first < kTileRows ? rows - first : kTileRows});
            }
            number += tiles;
        }
    });
}

inline void put(float* to, float value) {
    *to = value;
}
inline void put(bf16* to, float value) {
    *to = to_bf16(value);
}
inline void put(int8_t* to, float value) {
    *to = static_cast<int8_t>(value);
}
inline void store(int8_t* to, F32x16 codes) {
    store_i8(to, nearest(codes));
}

// One head of one token, [H], to 8-bit codes (as floats, in place); returns the scale. __init__.py states the
// arithmetic.
inline float quantise(float* x, int64_t head_size) {
    const F32x16 nothing = broadcast(0);
    F32x16 top = nothing, bad = nothing;
    for (int64_t h = 0; h < head_size; h += kLanes) {
        top = max(magnitude(load(x + h)), top);
        bad = fma(load(x + h), nothing, bad);  // NaN where a number is not finite
    }
    const float most = largest(top);
    const F32x16 factor = broadcast(most >= 0x1p-100f ? 127.0f / most : 0.0f);
    for (int64_t h = 0; h < head_size; h += kLanes) store(x + h, to_float(nearest(load(x + h) * factor)));
    return most / 127.0f + sum(bad);
}

template <class T>
void write(const PagedWrite& a) {
    const PageStore& s = a.store;
    for_each_row(a.rows, 8 * s.kv_heads * s.head_size, [&](int64_t row) {
        float* codes = static_cast<float*>(scratch(Scratch::piece, 2 * s.head_size * 4));
        uint8_t* page = s.arena + a.slots[row] / s.page_tokens * s.page_bytes;
        const int64_t inside = a.slots[row] % s.page_tokens;
        for (int64_t g = 0; g < s.kv_heads; ++g) {
            uint8_t *keys = page + s.k_at + g * s.head_bytes(), *values = page + s.v_at + g * s.head_bytes();
            const float *k = a.k + row * a.k_stride + g * s.head_size,
                        *v = a.v + row * a.v_stride + g * s.head_size;
            if constexpr (kScaled<T>) {
                memcpy(codes, k, static_cast<size_t>(s.head_size) * 4);
                memcpy(codes + s.head_size, v, static_cast<size_t>(s.head_size) * 4);
                k = codes, v = codes + s.head_size;
                reinterpret_cast<float*>(keys)[inside] = quantise(codes, s.head_size);
                reinterpret_cast<float*>(values)[inside] = quantise(codes + s.head_size, s.head_size);
            }
            T* key = reinterpret_cast<T*>(keys + s.scale_bytes()) + inside;
            T* value = reinterpret_cast<T*>(values + s.scale_bytes()) + inside * s.head_size;
            for (int64_t h = 0; h < s.head_size; ++h) put(key + h * s.page_tokens, k[h]);
            for (int64_t h = 0; h < s.head_size; h += kLanes) store(value + h, load(v + h));
        }
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
