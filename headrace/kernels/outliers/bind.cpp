// outliers: checks the arguments and calls the kernel of one level.
#include <nanobind/nanobind.h>

#include "headrace/array.h"
#include "headrace/check.h"
#include "outliers/kernel.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace headrace {
namespace {

HR_TABLE_OF(OutliersTable, outliers)

}  // namespace

void bind_outliers(nb::module_& m, Level level) {
    const OutliersTable& table = table_of(level);
    m.def(
        "outliers",
        [&table](nb::handle rows_object, int64_t group, int64_t count, int64_t parts, int64_t most,
                 nb::handle places_object) {
            const Array rows(rows_object, "rows"), places(places_object, "places");
            HR_CHECK(rows.dtype() == DType::bf16 && rows.dims() == 2 && rows.contiguous() && rows.size() > 0,
                     "rows must be contiguous bfloat16 [R, I]");
            const int64_t width = rows.size(1);
            HR_CHECK(width <= 1 << 16, "rows of more than 65,536 weights");
            HR_CHECK(parts > 0 && rows.size(0) % parts == 0, "rows cannot be cut into so many equal parts");
            HR_CHECK(group > 0 && group <= width && most > 0 && most < group && most <= Outliers::kMost,
                     "groups do not fit");
            const int64_t height = rows.size(0) / parts;
            HR_CHECK(count > 0 && count <= height * width, "count is out of range");
            HR_CHECK(places.dtype() == DType::i64 && places.contiguous() && places.size() == parts * count,
                     "places must be int64, as many as are chosen");
            const Outliers a{rows.data<const bf16>(), parts, height, width, group, count, most,
                             places.data<int64_t>()};
            // As reference.py says it.
            HR_CHECK(
                table.choose(a),
                "some weights are infinite or not a number: the checkpoint is damaged, download it again");
        },
        "rows"_a, "group"_a, "count"_a, "parts"_a, "most"_a, "places"_a);
}

}  // namespace headrace
