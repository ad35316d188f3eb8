// argmax: checks the arguments and calls the kernel of one level.
#include <nanobind/nanobind.h>

#include "argmax/kernel.h"
#include "headrace/array.h"
#include "headrace/check.h"

namespace nb = nanobind;

namespace headrace {
namespace {

HR_TABLE_OF(ArgmaxTable, argmax)

}  // namespace

void bind_argmax(nb::module_& m, Level level) {
    const ArgmaxTable& table = table_of(level);
    m.def("argmax", [&table](nb::handle x_object, nb::handle out_object) {
        const Array x(x_object, "x"), out(out_object, "out");
        HR_CHECK(x.dims() == 2 && x.size(1) > 0 && x.row_stride() >= 0,
                 "x must be [R, V] with contiguous rows of at least one value");
        HR_CHECK(x.dtype() == DType::f32 || x.dtype() == DType::bf16, "x must be float32 or bfloat16");
        HR_CHECK(out.dtype() == DType::i64 && out.contiguous() && out.size() == x.size(0),
                 "out must be int64 [R]");
        (x.dtype() == DType::f32 ? table.f32 : table.bf16)(
            {x.data<const void>(), x.size(0), x.size(1), x.row_stride(), out.data<int64_t>()});
    });
}

}  // namespace headrace
