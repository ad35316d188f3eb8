// mask: checks the arguments and calls the kernel of one level.
#include <nanobind/nanobind.h>

#include "headrace/array.h"
#include "headrace/check.h"
#include "mask/kernel.h"

namespace nb = nanobind;

namespace headrace {
namespace {

HR_TABLE_OF(MaskTable, mask)

}  // namespace

void bind_mask(nb::module_& m, Level level) {
    const MaskTable& table = table_of(level);
    m.def("mask", [&table](nb::handle x_object, nb::handle bits_object, nb::handle out_object) {
        const Array x(x_object, "x"), bits(bits_object, "bits"), out(out_object, "out");
        HR_CHECK(x.dims() == 1 && x.contiguous(), "x must be contiguous [V]");
        HR_CHECK(x.dtype() == DType::f32 || x.dtype() == DType::bf16, "x must be float32 or bfloat16");
        HR_CHECK(bits.dtype() == DType::u8 && bits.contiguous() && bits.size() >= (x.size() + 7) / 8,
                 "bits must be uint8, one bit for each value of x");
        HR_CHECK(out.dtype() == DType::f32 && out.contiguous() && out.size() == x.size(),
                 "out must be float32 [V]");
        (x.dtype() == DType::f32 ? table.f32 : table.bf16)(
            {x.data<const void>(), x.size(), bits.data<const uint8_t>(), out.data<float>()});
    });
}

}  // namespace headrace
