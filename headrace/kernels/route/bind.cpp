// route: checks the arguments and calls the kernels of one level. Grouping, a counting sort of a few thousand
// integers, is the same at every level and stands here.
#include <nanobind/nanobind.h>

#include "headrace/array.h"
#include "headrace/check.h"
#include "route/kernel.h"

namespace nb = nanobind;

namespace headrace {
namespace {

using Int = long long;  // for messages

HR_TABLE_OF(RouteTable, route)

template <class T>
T* check(const Array& array, DType dtype, int64_t count) {
    HR_CHECK(array.dtype() == dtype && array.contiguous() && array.size() == count,
             "%s must be contiguous, with %lld values of the right dtype", array.name(),
             static_cast<Int>(count));
    return array.data<T>();
}

// Assignments [first, first + count) of `rows`.
Move check_move(const Array& batch, const Array& rows, int64_t first, int64_t count) {
    HR_CHECK(batch.dtype() == DType::f32 && batch.dims() == 2 && batch.row_stride() >= 0,
             "%s must be float32 [T, D] with contiguous rows", batch.name());
    const int64_t* row = check<const int64_t>(rows, DType::i64, rows.size()) + first;
    HR_CHECK(first >= 0 && count >= 0 && count <= rows.size() - first, "assignments %lld to %lld of %lld",
             static_cast<Int>(first), static_cast<Int>(first + count), static_cast<Int>(rows.size()));
    for (int64_t i = 0; i < count; ++i)
        HR_CHECK(row[i] >= 0 && row[i] < batch.size(0), "row %lld of %lld", static_cast<Int>(row[i]),
                 static_cast<Int>(batch.size(0)));
    return {row, count, batch.size(1), batch.row_stride()};
}

void group(nb::handle share_object, nb::handle id_object, nb::handle count_object, nb::handle row_object,
           nb::handle grouped_object) {
    const Array share(share_object, "shares"), id(id_object, "experts"), count(count_object, "counts"),
        row(row_object, "rows"), grouped(grouped_object, "grouped shares");
    HR_CHECK(id.dims() == 2, "experts must be [T, K]");
    const int64_t assignments = id.size(), active = id.size(1), experts = count.size();
    const int64_t* expert = check<const int64_t>(id, DType::i64, assignments);
    const float* shares = check<const float>(share, DType::f32, assignments);
    int64_t* counts = check<int64_t>(count, DType::i64, experts);
    int64_t* rows = check<int64_t>(row, DType::i64, assignments);
    float* out = check<float>(grouped, DType::f32, assignments);
    for (int64_t i = 0; i < experts; ++i) counts[i] = 0;
    for (int64_t i = 0; i < assignments; ++i) {
        HR_CHECK(expert[i] >= 0 && expert[i] < experts, "expert %lld of %lld", static_cast<Int>(expert[i]),
                 static_cast<Int>(experts));
        ++counts[expert[i]];
    }
    int64_t place =
        0;  // counts become the places where the next assignment of each expert goes, then counts again
    for (int64_t i = 0; i < experts; ++i) {
        const int64_t first = place;
        place += counts[i];
        counts[i] = first;
    }
    for (int64_t i = 0; i < assignments; ++i) {
        const int64_t at = counts[expert[i]]++;
        rows[at] = i / active;
        out[at] = shares[i];
    }
    for (int64_t i = experts - 1; i > 0; --i) counts[i] -= counts[i - 1];
}

}  // namespace

void bind_route(nb::module_& m, Level level) {
    const RouteTable& table = table_of(level);
    m.def("route", [&table](nb::handle logits_object, nb::handle share_object, nb::handle id_object,
                            bool renormalise) {
        const Array logits(logits_object, "logits"), share(share_object, "shares"), id(id_object, "experts");
        HR_CHECK(logits.dtype() == DType::f32 && logits.dims() == 2 && logits.contiguous(),
                 "logits must be contiguous float32 [T, E]");
        HR_CHECK(id.dims() == 2 && id.size(1) > 0 && id.size(1) <= logits.size(1),
                 "experts must be [T, K], 0 < K <= E");
        const int64_t rows = logits.size(0), active = id.size(1);
        table.route({logits.data<const float>(), rows, logits.size(1), active, renormalise,
                     check<float>(share, DType::f32, rows * active),
                     check<int64_t>(id, DType::i64, rows * active)});
    });
    m.def("route_group", group);
    m.def("route_gather", [&table](nb::handle from_object, nb::handle row_object, nb::handle to_object) {
        const Array from(from_object, "x"), row(row_object, "rows"), to(to_object, "out");
        const Move move = check_move(from, row, 0, row.size());
        table.gather(move, from.data<const float>(), check<float>(to, DType::f32, move.count * move.width));
    });
    m.def("route_scatter_add", [&table](nb::handle to_object, nb::handle from_object, nb::handle row_object,
                                        nb::handle share_object, int64_t first) {
        const Array to(to_object, "out"), from(from_object, "y"), row(row_object, "rows"),
            share(share_object, "shares");
        HR_CHECK(from.dims() == 2, "y must be [A, D]");
        const Move move = check_move(to, row, first, from.size(0));
        for (int64_t i = 1; i < move.count; ++i)
            HR_CHECK(move.rows[i - 1] < move.rows[i], "rows must ascend");
        table.scatter_add(move, check<const float>(from, DType::f32, move.count * move.width),
                          check<const float>(share, DType::f32, row.size()) + first, to.data<float>());
    });
}

}  // namespace headrace
