// rope: checks the arguments and calls the kernel of one level.
#include <nanobind/nanobind.h>

#include "headrace/array.h"
#include "headrace/calls.h"
#include "headrace/check.h"
#include "rope/kernel.h"

namespace nb = nanobind;

namespace headrace {
namespace {

using Int = long long;  // for messages

HR_TABLE_OF(RopeTable, rope)

}  // namespace

void bind_rope(nb::module_& m, Level level) {
    const RopeTable& table = table_of(level);
    def_call(
        m, "rope",
        [&table](nb::handle x_object, nb::handle cos_object, nb::handle sin_object, nb::handle at_object) {
            const Array x(x_object, "x"), cos(cos_object, "cos"), sin(sin_object, "sin"),
                at(at_object, "positions");
            HR_CHECK(x.dtype() == DType::f32 && x.dims() == 3 && x.inner_contiguous() && x.size(2) % 2 == 0,
                     "x must be float32 [T, N, H] with contiguous rows and an even H");
            const int64_t rows = x.size(0), pairs = x.size(2) / 2;
            HR_CHECK(cos.dtype() == DType::f32 && cos.contiguous() && cos.dims() == 2 &&
                         cos.size(1) == pairs && sin.dtype() == DType::f32 && sin.contiguous() &&
                         sin.size() == cos.size(),
                     "cos and sin must be float32 [L, %lld]", static_cast<Int>(pairs));
            HR_CHECK(at.dtype() == DType::i64 && at.contiguous() && at.size() == rows,
                     "positions must be int64 [T]");
            const Rope rope{x.data<float>(),
                            rows,
                            x.size(1),
                            pairs,
                            x.stride(0),
                            cos.data<const float>(),
                            sin.data<const float>(),
                            at.data<const int64_t>()};
            return [&table, rope, length = cos.size(0)] {
                for (int64_t i = 0; i < rope.rows; ++i)
                    HR_CHECK(rope.positions[i] >= 0 && rope.positions[i] < length, "position %lld of %lld",
                             static_cast<Int>(rope.positions[i]), static_cast<Int>(length));
                table.rotate(rope);
            };
        });
}

}  // namespace headrace
