// block_attention: what cpu.cpp offers at each level, and bind.cpp calls. See store.py for where codes lie.
#pragma once

#include <stdint.h>

#include "headrace/attention_rows.h"
#include "headrace/bf16.h"
#include "headrace/level.h"

namespace headrace {

// One layer's part of the blocks in a page.
struct BlockStore {
    const uint8_t* arena;
    int64_t page_bytes, at, stride;  // bytes; stride: from block to block
    int64_t page_tokens, block_tokens;
    int64_t group, channels;  // tokens of a key's group, channels of a value's
    int64_t kv_heads, head_size, bits;

    int64_t code_bytes() const { return block_tokens * head_size * bits / 8; }
    int64_t key_groups() const { return block_tokens / group; }
    int64_t value_groups() const { return head_size / channels; }
    // Of one kv head.
    int64_t head_bytes() const {
        const int64_t numbers = 2 * (key_groups() * head_size + value_groups() * block_tokens);
        return 2 * code_bytes() + numbers * static_cast<int64_t>(sizeof(bf16));
    }
};

// Runs are of whole blocks, or empty where a row reads nothing.
struct BlockAttention : AttentionRows {
    BlockStore store;
};

struct BlockAttentionTable {
    void (*attend)(const BlockAttention&);
};

HR_TABLE(BlockAttentionTable, block_attention)

}  // namespace headrace
