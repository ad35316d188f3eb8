// Blocks of sixteen stored tokens: where they lie, fetching them ahead, and widening them to float.
#pragma once

#include "headrace/attention_tiles.h"
#include "paged_attention/kernel.h"

namespace headrace::HR_LEVEL {
namespace {

constexpr int64_t kBlockTokens = 16;
constexpr int64_t kChunkTokens = 256;  // whose scores are held at once
constexpr int64_t kChunkBlocks = kChunkTokens / kBlockTokens;
constexpr int64_t kSegmentBlocks = kSegmentTokens / kBlockTokens;
constexpr int64_t kLine = 64;  // bytes

template <class T>
struct Block {
    const T* keys;                           // [H][stride]
    const T* values;                         // [16][H]
    const float *key_scales, *value_scales;  // [16] each, of codes; null for plain numbers
    int64_t position, count;
};

// Blocks that are read together, and how their keys lie.
template <class T>
struct Blocks {
    const Block<T>* at;
    int64_t count, stride;
};

template <class T>
constexpr bool kIsFloat = false;
template <>
constexpr bool kIsFloat<float> = true;

// Sixteen dimensions of a block's keys.
template <class T>
inline void fetch_keys(const T* keys, int64_t stride) {
    const int64_t row = stride * static_cast<int64_t>(sizeof(T)), step = row < kLine ? kLine / row : 1;
    for (int64_t h = 0; h < kLanes; h += step) prefetch(keys + h * stride);
}

// A line of each of a block's values.
template <class T>
inline void fetch_values(const T* values, int64_t head_size) {
    for (int64_t i = 0; i < kBlockTokens; ++i) prefetch(values + i * head_size);
}

template <class T>
inline void fetch_first_values(const Block<T>& block, int64_t head_size) {
    constexpr int64_t kPerLine = kLine / static_cast<int64_t>(sizeof(T));
    for (int64_t h = 0; h < head_size; h += kPerLine) fetch_values(block.values + h, head_size);
    if (block.value_scales) prefetch(block.value_scales);
}

// Keys as [H][16] floats.
template <class T>
inline void widen_keys(const T* keys, int64_t stride, int64_t head_size, float* wide) {
    for (int64_t h = 0; h < head_size; ++h) store(wide + h * kBlockTokens, load(keys + h * stride));
}

template <class T>
inline void widen_values(const T* values, int64_t head_size, float* wide) {
    for (int64_t i = 0; i < kBlockTokens * head_size; i += kLanes) store(wide + i, load(values + i));
}

}  // namespace
}  // namespace headrace::HR_LEVEL
