// Blocks of sixteen stored tokens: where they lie, fetching them ahead, and widening them to float.
#pragma once

#include "headrace/attention_tiles.h"
#include "paged_attention/kernel.h"

namespace headrace::HR_LEVEL {
namespace {

constexpr int64_t kBlockTokens = 16;
constexpr int64_t kChunkTokens = 256;  // whose scores are held at once
constexpr int kGroupBlocks = 4;        // that all rows meet before the next ones
constexpr int64_t kChunkBlocks = kChunkTokens / kBlockTokens;
constexpr int64_t kSegmentBlocks = kSegmentTokens / kBlockTokens;
constexpr int64_t kLine = 64;    // bytes
constexpr int64_t kFetched = 4;  // dimensions of keys at once: fetching is spread among multiplying

// Blocks from the one that is worked on to the one that is fetched: some eight kilobytes. Pieces of one or
// two kilobytes lie all over the memory, and the processor's own prefetching starts anew with each; into the
// second cache more lines are on their way at once than into the first: twice the bandwidth on Zen 4.
template <class T>
constexpr int64_t kAhead = 8 / static_cast<int64_t>(sizeof(T));

template <class T>
struct Block {
    const T* keys;                           // [H][stride]
    const T* values;                         // [16][H]
    const float *key_scales, *value_scales;  // [16] each, of codes; null for plain numbers
    int64_t position, count;
};

// Blocks that are read together, how their keys lie, and the last block that will be read after them.
template <class T>
struct Blocks {
    const Block<T>* at;
    int64_t count, stride;
    const Block<T>* last;

    const Block<T>& ahead(int64_t b) const { return at + b + kAhead<T> < last ? at[b + kAhead<T>] : *last; }
};

template <class T>
constexpr bool kIsFloat = false;
template <>
constexpr bool kIsFloat<float> = true;
template <class T>
constexpr bool kHasScales = sizeof(T) == 1;

// Dimensions of a block's keys that share a line.
template <class T>
inline int64_t keys_per_line(int64_t stride) {
    const int64_t row = stride * static_cast<int64_t>(sizeof(T));
    return row < kLine ? kLine / row : 1;
}

// kFetched dimensions of a block's keys.
template <class T>
[[gnu::always_inline]] inline void fetch_keys(const T* keys, int64_t stride, int64_t per_line) {
    for (int64_t h = 0; h < kFetched; h += per_line) prefetch_second(keys + h * stride);
}

// Numbers in a line.
template <class T>
constexpr int64_t kPerLine = kLine / static_cast<int64_t>(sizeof(T));

// What is read before the first fetched ahead arrives.
template <class T>
[[gnu::always_inline]] inline void fetch_first(const Blocks<T>& blocks, int64_t head_size) {
    const int64_t per_line = keys_per_line<T>(blocks.stride);
    const Block<T>* end = blocks.at + (blocks.count < kAhead<T> ? blocks.count : kAhead<T>);
    for (const Block<T>* block = blocks.at; block < end; ++block)
        for (int64_t h = 0; h < head_size; h += kFetched)
            fetch_keys(block->keys + h * blocks.stride, blocks.stride, per_line);
    for (const Block<T>* block = blocks.at; block < end; ++block) {
        for (int64_t i = 0; i < kBlockTokens * head_size; i += kPerLine<T>)
            prefetch_second(block->values + i);
        if (block->value_scales) prefetch_second(block->value_scales);
    }
}

// Keys as [H][16] floats.
template <class T>
inline void widen_keys(const Blocks<T>& blocks, int64_t b, int64_t head_size, float* wide) {
    const int64_t stride = blocks.stride, per_line = keys_per_line<T>(stride);
    const T *keys = blocks.at[b].keys, *ahead = blocks.ahead(b).keys;
    for (int64_t first = 0; first < head_size; first += kFetched) {
        fetch_keys(ahead + first * stride, stride, per_line);
        for (int64_t h = first; h < first + kFetched; ++h)
            store(wide + h * kBlockTokens, load(keys + h * stride));
    }
}

template <class T>
inline void widen_values(const Blocks<T>& blocks, int64_t b, int64_t head_size, float* wide) {
    const T *values = blocks.at[b].values, *ahead = blocks.ahead(b).values;
    for (int64_t i = 0; i < kBlockTokens * head_size; i += kLanes) {
        if (i % kPerLine<T> == 0) prefetch_second(ahead + i);
        store(wide + i, load(values + i));
    }
}

}  // namespace
}  // namespace headrace::HR_LEVEL
