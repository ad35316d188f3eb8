// page_dots: checks the arguments and calls the kernel of one level.
#include <nanobind/nanobind.h>

#include "headrace/array.h"
#include "headrace/attention_check.h"
#include "headrace/check.h"
#include "page_dots/kernel.h"

namespace nb = nanobind;

namespace headrace {
namespace {

using Int = long long;  // for messages

HR_TABLE_OF(PageDotsTable, page_dots)

void check_within(const Array& x, int64_t count, int64_t below) {
    check_i64(x, count);
    for (int64_t i = 0; i < count; ++i)
        HR_CHECK(x.data<const int64_t>()[i] >= 0 && x.data<const int64_t>()[i] < below,
                 "%s: %lld, and there are %lld", x.name(), static_cast<Int>(x.data<const int64_t>()[i]),
                 static_cast<Int>(below));
}

}  // namespace

void bind_page_dots(nb::module_& m, Level level) {
    const PageDotsTable& table = table_of(level);
    m.def("page_dots", [&table](nb::handle q_object, nb::handle arena_object, int64_t at, int64_t kv_heads,
                                int64_t count, nb::handle tables_object, nb::handle row_tables_object,
                                nb::handle row_counts_object, nb::handle out_object) {
        const Array q(q_object, "q"), arena(arena_object, "arena"), tables(tables_object, "tables"),
            row_tables(row_tables_object, "row tables"), row_counts(row_counts_object, "row counts"),
            out(out_object, "out");
        HR_CHECK(q.dtype() == DType::f32 && q.dims() == 3 && q.contiguous() && q.size(2) % 16 == 0,
                 "q must be float32 [R, N, X], contiguous, X a multiple of 16");
        HR_CHECK(kv_heads > 0 && q.size(1) % kv_heads == 0, "%lld query heads for %lld kv heads",
                 static_cast<Int>(q.size(1)), static_cast<Int>(kv_heads));
        HR_CHECK(arena.dtype() == DType::u8 && arena.dims() == 2 && arena.contiguous(),
                 "arena must be uint8 [P, X]");
        HR_CHECK(count > 0 && at >= 0 && at % 2 == 0 && arena.size(1) % 2 == 0 && count <= arena.size(1) &&
                     kv_heads <= arena.size(1) && at + kv_heads * count * q.size(2) * 2 <= arena.size(1),
                 "%lld vectors of %lld heads do not fit in a page of %lld bytes", static_cast<Int>(count),
                 static_cast<Int>(kv_heads), static_cast<Int>(arena.size(1)));
        HR_CHECK(tables.dims() == 2, "tables must be [S, B]");
        check_within(tables, tables.size(), arena.size(0));
        check_within(row_tables, q.size(0), tables.size(0));
        check_within(row_counts, q.size(0), tables.size(1) + 1);
        HR_CHECK(out.dtype() == DType::f32 && out.contiguous() &&
                     out.size() == q.size(0) * q.size(1) * tables.size(1) * count,
                 "out must be float32 [R, N, B, C]");
        const PageDots a{q.data<const float>(),
                         q.size(0),
                         q.size(1),
                         q.size(2),
                         arena.data<const uint8_t>(),
                         arena.size(1),
                         at,
                         kv_heads,
                         count,
                         tables.data<const int64_t>(),
                         row_tables.data<const int64_t>(),
                         row_counts.data<const int64_t>(),
                         tables.size(1),
                         out.data<float>()};
        nb::gil_scoped_release release;
        table.dots(a);
    });
}

}  // namespace headrace
