// block_attention: checks the arguments and calls the kernel of one level.
#include <nanobind/nanobind.h>

#include "block_attention/kernel.h"
#include "headrace/array.h"
#include "headrace/attention_check.h"
#include "headrace/calls.h"
#include "headrace/check.h"

namespace nb = nanobind;

namespace headrace {
namespace {

using Int = long long;  // for messages

HR_TABLE_OF(BlockAttentionTable, block_attention)

// (at, stride, page_tokens, block_tokens, group, channels, kv_heads, bits)
BlockStore check_store(const Array& arena, nb::tuple shape, int64_t head_size) {
    HR_CHECK(shape.size() == 8, "a store has eight sizes");
    int64_t n[8];
    for (size_t i = 0; i < 8; ++i) n[i] = nb::cast<int64_t>(shape[i]);
    const BlockStore s{
        arena.data<uint8_t>(), arena.size(1), n[0], n[1], n[2], n[3], n[4], n[5], n[6], head_size, n[7]};
    HR_CHECK(arena.dtype() == DType::u8 && arena.dims() == 2 && arena.contiguous(),
             "arena must be uint8 [P, X]");
    HR_CHECK(s.bits == 4 || s.bits == 2, "codes of %lld bits: 4 or 2", static_cast<Int>(s.bits));
    HR_CHECK(s.block_tokens > 0 && s.block_tokens % 32 == 0 && s.block_tokens <= 1024,
             "blocks of %lld tokens: a multiple of 32, at most 1024", static_cast<Int>(s.block_tokens));
    HR_CHECK(head_size > 0 && head_size % 32 == 0 && head_size <= 1024,
             "heads of %lld: a multiple of 32, at most 1024", static_cast<Int>(head_size));
    HR_CHECK(s.group > 0 && s.group % 16 == 0 && s.block_tokens % s.group == 0 && s.channels > 0 &&
                 s.channels % 16 == 0 && head_size % s.channels == 0,
             "groups of %lld tokens and %lld channels do not fit", static_cast<Int>(s.group),
             static_cast<Int>(s.channels));
    HR_CHECK(s.page_tokens > 0 && s.page_tokens % s.block_tokens == 0, "pages of %lld tokens: whole blocks",
             static_cast<Int>(s.page_tokens));
    HR_CHECK(s.kv_heads > 0 && s.at >= 0 && s.at % 2 == 0 && s.stride % 2 == 0 &&
                 s.at + s.kv_heads * s.head_bytes() <= s.stride &&
                 s.page_tokens / s.block_tokens * s.stride <= arena.size(1),
             "blocks of %lld bytes do not fit in a page of %lld", static_cast<Int>(s.stride),
             static_cast<Int>(arena.size(1)));
    return s;
}

// Every row has its runs, and these are of whole blocks: an empty one for a row that reads nothing.
void check_whole(const BlockAttention& a) {
    int64_t covered = 0;
    for (int64_t i = 0; i < a.num_runs; ++i) {
        const Run& run = a.runs[i];
        HR_CHECK(run.length % a.store.block_tokens == 0, "run %lld does not fit", static_cast<Int>(i));
        if (i == 0 || a.runs[i - 1].first_row != run.first_row) covered += run.end_row - run.first_row;
    }
    HR_CHECK(covered == a.rows, "runs of %lld rows, where there are %lld", static_cast<Int>(covered),
             static_cast<Int>(a.rows));
}

}  // namespace

void bind_block_attention(nb::module_& m, Level level) {
    const BlockAttentionTable& table = table_of(level);
    def_call(
        m, "block_attention",
        [&table](nb::handle q_object, nb::handle arena_object, nb::tuple shape, nb::handle positions_object,
                 nb::handle pages_object, nb::handle runs_object, float scale, int64_t window, int64_t sink,
                 nb::handle out_object, nb::handle lse_object) {
            const Array q(q_object, "q"), arena(arena_object, "arena");
            HR_CHECK(q.dims() == 3, "q must be [T, N, H]");
            const BlockStore store = check_store(arena, shape, q.size(2));
            const CheckedRows checked = check_rows(q, store.kv_heads, positions_object, pages_object,
                                                   runs_object, scale, window, sink, out_object, lse_object);
            return [&table, checked, store, arena_pages = arena.size(0)] {
                const BlockAttention a{checked.rows, store};
                checked.check_runs(store.block_tokens, 0, store.page_tokens, arena_pages);
                check_whole(a);
                table.attend(a);
            };
        });
}

}  // namespace headrace
