// Sixteen rows side by side: the layout of packed weights, where a register holds the same place of sixteen
// rows.
#pragma once

#ifndef HR_LEVEL
#error "transpose.h is for sources that are compiled per level"
#endif

#include <stdint.h>
#include <string.h>

namespace headrace::HR_LEVEL {

// The first kWords 32-bit words of sixteen rows that lie `stride` bytes apart: out[word][row].
template <int kWords>
inline void transpose(const void* rows, int64_t stride, uint32_t (&out)[kWords][16]) {
    const char* from = static_cast<const char*>(rows);
    for (int row = 0; row < 16; ++row) {
        uint32_t words[kWords];
        memcpy(words, from + row * stride, sizeof words);
        for (int word = 0; word < kWords; ++word) out[word][row] = words[word];
    }
}

}  // namespace headrace::HR_LEVEL
