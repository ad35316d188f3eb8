// paged_attention: checks the arguments and calls the kernels of one level.
#include <nanobind/nanobind.h>

#include "headrace/array.h"
#include "headrace/attention_check.h"
#include "headrace/calls.h"
#include "headrace/check.h"
#include "paged_attention/kernel.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace headrace {
namespace {

using Int = long long;  // for messages

HR_TABLE_OF(PagedAttentionTable, paged_attention)

PageStore check_store(const Array& arena, int64_t k_at, int64_t v_at, int64_t page_tokens, int64_t kv_heads,
                      int64_t head_size, int64_t item_bytes, int64_t head_stride) {
    HR_CHECK(arena.dtype() == DType::u8 && arena.dims() == 2 && arena.contiguous(),
             "arena must be uint8 [P, X]");
    HR_CHECK(page_tokens > 0 && page_tokens % 16 == 0, "pages of %lld tokens: a multiple of 16 is needed",
             static_cast<Int>(page_tokens));
    HR_CHECK(head_size > 0 && head_size % 16 == 0, "heads of %lld: a multiple of 16 is needed",
             static_cast<Int>(head_size));
    HR_CHECK(item_bytes == 1 || item_bytes == 2 || item_bytes == 4, "numbers of %lld bytes: 1, 2 or 4",
             static_cast<Int>(item_bytes));
    const PageStore store{
        arena.data<uint8_t>(),           arena.size(1), k_at, v_at, page_tokens, kv_heads, head_size,
        static_cast<Stored>(item_bytes), head_stride};
    const int64_t size = store.head_at(kv_heads - 1) + store.head_bytes();
    HR_CHECK(head_stride == 0 || (head_stride >= store.head_bytes() && head_stride <= arena.size(1)),
             "kv heads of %lld bytes cannot be %lld apart", static_cast<Int>(store.head_bytes()),
             static_cast<Int>(head_stride));
    HR_CHECK(kv_heads > 0 && k_at >= 0 && v_at >= 0 && k_at + size <= arena.size(1) &&
                 v_at + size <= arena.size(1),
             "keys or values of %lld bytes do not fit in a page of %lld", static_cast<Int>(size),
             static_cast<Int>(arena.size(1)));
    return store;
}

// A [T, heads, H] view whose rows are contiguous but need not follow each other.
int64_t check_heads(const Array& x, int64_t heads, int64_t head_size) {
    HR_CHECK(x.dtype() == DType::f32 && x.dims() == 3 && x.size(1) == heads && x.size(2) == head_size &&
                 x.inner_contiguous(),
             "%s must be float32 [T, %lld, %lld] with contiguous rows", x.name(), static_cast<Int>(heads),
             static_cast<Int>(head_size));
    return x.stride(0);
}

// A call of attention, its arguments checked; pages and runs are still to be.
struct Checked {
    CheckedRows rows;
    PageStore store;
    int64_t arena_pages;

    PagedAttention ready() const {
        rows.check_runs(16, 1, store.page_tokens, arena_pages);
        return {rows.rows, store};
    }
};

// A function of attention's arguments that returns then(Checked).
template <class Then>
auto with_checked(const Then& then) {
    return [then](nb::handle q_object, nb::handle arena_object, int64_t k_at, int64_t v_at,
                  int64_t page_tokens, int64_t kv_heads, int64_t item_bytes, int64_t head_stride,
                  nb::handle positions_object, nb::handle pages_object, nb::handle runs_object, float scale,
                  int64_t window, int64_t sink, nb::handle out_object, nb::handle lse_object) {
        const Array q(q_object, "q"), arena(arena_object, "arena");
        HR_CHECK(q.dims() == 3, "q must be [T, N, H]");
        const PageStore store =
            check_store(arena, k_at, v_at, page_tokens, kv_heads, q.size(2), item_bytes, head_stride);
        const CheckedRows rows = check_rows(q, kv_heads, positions_object, pages_object, runs_object, scale,
                                            window, sink, out_object, lse_object);
        return then(Checked{rows, store, arena.size(0)});
    };
}

}  // namespace

void bind_paged_attention(nb::module_& m, Level level) {
    const PagedAttentionTable& table = table_of(level);
    def_call(m, "paged_attention", with_checked([&table](const Checked& checked) {
                 return [&table, checked] { table.attend(checked.ready()); };
             }),
             "q"_a, "arena"_a, "k_at"_a, "v_at"_a, "page_tokens"_a, "kv_heads"_a, "item_bytes"_a,
             "head_stride"_a, "positions"_a, "pages"_a, "runs"_a, "scale"_a, "window"_a, "sink"_a, "out"_a,
             "lse"_a);
    // Of the same arguments: how many pieces of work the call would be.
    m.def("paged_attention_pieces",
          with_checked([&table](const Checked& checked) { return table.pieces(checked.ready()); }));
    def_call(
        m, "paged_attention_write",
        [&table](nb::handle arena_object, int64_t k_at, int64_t v_at, int64_t page_tokens, int64_t item_bytes,
                 int64_t head_stride, nb::handle k_object, nb::handle v_object, nb::handle slots_object) {
            const Array arena(arena_object, "arena"), k(k_object, "k"), v(v_object, "v"),
                slots(slots_object, "slots");
            HR_CHECK(k.dims() == 3, "k must be [T, G, H]");
            const int64_t rows = k.size(0), kv_heads = k.size(1), head_size = k.size(2);
            const PageStore store =
                check_store(arena, k_at, v_at, page_tokens, kv_heads, head_size, item_bytes, head_stride);
            HR_CHECK(v.dims() == 3 && v.size(0) == rows, "v must have the rows of k");
            check_i64(slots, rows);
            const PagedWrite a{store,
                               k.data<const float>(),
                               v.data<const float>(),
                               check_heads(k, kv_heads, head_size),
                               check_heads(v, kv_heads, head_size),
                               rows,
                               slots.data<const int64_t>()};
            return [&table, a, arena_slots = arena.size(0) * page_tokens] {
                for (int64_t i = 0; i < a.rows; ++i)
                    HR_CHECK(a.slots[i] >= 0 && a.slots[i] < arena_slots, "slot %lld is outside the arena",
                             static_cast<Int>(a.slots[i]));
                table.write(a);
            };
        },
        "arena"_a, "k_at"_a, "v_at"_a, "page_tokens"_a, "item_bytes"_a, "head_stride"_a, "k"_a, "v"_a,
        "slots"_a);
}

}  // namespace headrace
