// paged_attention: what cpu.cpp offers at each level, and bind.cpp calls.
//
//   page    page_bytes; this layer's keys begin at k_at, its values at v_at, those of the next kv head
//     head_stride further
//     keys      [H][page_tokens]     a vector load is one dimension of sixteen tokens: scores need no
//     reduction values    [page_tokens][H]     a vector load is sixteen dimensions of one token
//   int8 codes follow their scales, float [page_tokens], in either
#pragma once

#include <stdint.h>

#include "headrace/attention_rows.h"
#include "headrace/level.h"

namespace headrace {

// What is stored; the value is its bytes.
enum class Stored : int64_t { i8 = 1, bf16 = 2, f32 = 4 };

struct PageStore {
    uint8_t* arena;
    int64_t page_bytes, k_at, v_at;  // bytes
    int64_t page_tokens;             // a multiple of 16
    int64_t kv_heads, head_size;     // head_size is a multiple of 16
    Stored stored;
    int64_t head_stride;  // bytes; 0: one kv head's keys follow another's

    int64_t scale_bytes() const { return stored == Stored::i8 ? page_tokens * 4 : 0; }
    // Of one kv head's keys, or values.
    int64_t head_bytes() const {
        return scale_bytes() + page_tokens * head_size * static_cast<int64_t>(stored);
    }
    int64_t head_at(int64_t kv_head) const { return kv_head * (head_stride ? head_stride : head_bytes()); }
};

struct PagedAttention : AttentionRows {
    PageStore store;
};

struct PagedWrite {
    PageStore store;
    const float* k;  // [T, G, H], rows k_stride apart
    const float* v;
    int64_t k_stride, v_stride, rows;
    const int64_t* slots;  // [T]: page * page_tokens + offset
};

struct PagedAttentionTable {
    void (*attend)(const PagedAttention&);
    int64_t (*pieces)(const PagedAttention&);  // that its work is cut into
    void (*write)(const PagedWrite&);
};

HR_TABLE(PagedAttentionTable, paged_attention)

}  // namespace headrace
