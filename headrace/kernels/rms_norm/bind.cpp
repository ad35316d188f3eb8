// rms_norm: checks the arguments and calls the kernel of one level.
#include <nanobind/nanobind.h>

#include "headrace/array.h"
#include "headrace/calls.h"
#include "headrace/check.h"
#include "rms_norm/kernel.h"

namespace nb = nanobind;

namespace headrace {
namespace {

HR_TABLE_OF(RmsNormTable, rms_norm)

auto check(const RmsNormTable& table, nb::handle x_object, nb::handle weight_object, nb::handle out_object,
           float eps, float weight_offset) {
    const Array x(x_object, "x"), weight(weight_object, "weight"), out(out_object, "out");
    HR_CHECK(x.dims() >= 1 && x.size(x.dims() - 1) > 0, "x must have rows of at least one value");
    const int64_t width = x.size(x.dims() - 1), count = x.size();
    HR_CHECK(weight.dims() == 1 && weight.size(0) == width,
             "weight has %lld values in %d dimensions, rows of x %lld", static_cast<long long>(weight.size()),
             weight.dims(), static_cast<long long>(width));
    HR_CHECK(out.size() == count, "out has %lld values, x %lld", static_cast<long long>(out.size()),
             static_cast<long long>(count));
    HR_CHECK(x.dtype() != DType::other && x.dtype() == weight.dtype() && x.dtype() == out.dtype(),
             "x, weight and out must be all float32 or all bfloat16");
    HR_CHECK(x.contiguous() && weight.contiguous() && out.contiguous(),
             "x, weight and out must be contiguous");

    const RmsNorm arguments{
        x.data<const void>(), weight.data<const void>(), out.data<void>(), count / width, width, eps,
        weight_offset};
    return [kernel = x.dtype() == DType::f32 ? table.f32 : table.bf16, arguments] { kernel(arguments); };
}

}  // namespace

void bind_rms_norm(nb::module_& m, Level level) {
    const RmsNormTable& table = table_of(level);
    def_call(m, "rms_norm",
             [&table](nb::handle x, nb::handle weight, nb::handle out, float eps, float weight_offset) {
                 return check(table, x, weight, out, eps, weight_offset);
             });
}

}  // namespace headrace
