// int_linear: checks the arguments and calls the kernels of one level.
#include <nanobind/nanobind.h>

#include "headrace/array.h"
#include "headrace/calls.h"
#include "headrace/check.h"
#include "headrace/product_check.h"
#include "int_linear/kernel.h"
#include "int_linear/row_scratch.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace headrace {
namespace {

HR_TABLE_OF(IntLinearTable, int_linear)

IntShape check_shape(int64_t outputs, int64_t width, int64_t group, int bits, bool zeros) {
    check_size(outputs, width);
    HR_CHECK(bits >= 1 && bits <= 8, "%d bits; known: 1 to 8", bits);
    return {width, outputs, check_group(group, width, kChunk), bits, zeros};
}

}  // namespace

void bind_int_linear(nb::module_& m, Level level) {
    const IntLinearTable& table = table_of(level);
    def_call(
        m, "int_linear",
        [&table](nb::handle x_object, nb::handle packed_object, int64_t outputs, int64_t width, int64_t group,
                 int bits, bool zeros, int64_t few, nb::handle out_object, nb::handle bias, nb::handle add,
                 int before, nb::handle norm, float eps, float offset) {
            const IntShape shape = check_shape(outputs, width, group, bits, zeros);
            const Array x(x_object, "x"), packed(packed_object, "packed");
            const RowSource source = check_rows(x, shape.width, before, norm, eps, offset);
            const int64_t rows = x.size(0);
            const uint8_t* bytes = check_packed(packed, shape);
            const ProductEnd end = check_end(out_object, bias, add, rows, outputs);
            return [&table, shape, source, rows, bytes, end, few] {
                if (rows == 0) return;
                const IntLinear product{shape, rows_in_scratch(shape, rows, table.stepwise(shape, rows, few)),
                                        bytes, end, few};
                table.quantise(shape, source, product.rows);
                table.multiply(product);
            };
        },
        "x"_a, "packed"_a, "outputs"_a, "width"_a, "group"_a, "bits"_a, "zeros"_a, "few"_a, "out"_a,
        "bias"_a.none(), "add"_a.none(), "before"_a, "norm"_a.none(), "eps"_a, "offset"_a);
    m.def(
        "int_linear_rows",
        [&table](nb::handle x_object, int64_t group, nb::handle codes_object, nb::handle scales_object,
                 nb::handle sums_object, int before, nb::handle norm, float eps, float offset) {
            const Array x(x_object, "x"), codes(codes_object, "codes"), scales(scales_object, "scales"),
                sums(sums_object, "sums");
            HR_CHECK(x.dims() == 2, "x must have two dimensions");
            const bool gate = before >= static_cast<int>(Before::silu_gate);
            const IntShape shape = check_shape(1, x.size(1) / (gate ? 2 : 1), group, 8, false);
            const RowSource source = check_rows(x, shape.width, before, norm, eps, offset);
            const int64_t rows = x.size(0);
            HR_CHECK(codes.dtype() == DType::i8 && codes.contiguous() &&
                         codes.size() == rows * shape.padded() && scales.dtype() == DType::f32 &&
                         scales.contiguous() && scales.size() == rows && sums.dtype() == DType::i32 &&
                         sums.contiguous() && sums.size() == rows * shape.groups(),
                     "codes, scales or sums do not fit x");
            table.quantise(shape, source,
                           {codes.data<int8_t>(), scales.data<float>(), sums.data<int32_t>(), rows,
                            shape.padded(), shape.step()});
        },
        "x"_a, "group"_a, "codes"_a, "scales"_a, "sums"_a, "before"_a, "norm"_a.none(), "eps"_a, "offset"_a);
    m.def(
        "int_linear_pack",
        [&table](nb::handle codes_object, nb::handle scales_object, nb::handle zeros, int64_t group, int bits,
                 nb::handle packed_object) {
            const Array codes(codes_object, "codes"), scales(scales_object, "scales"),
                packed(packed_object, "packed");
            HR_CHECK(codes.dtype() == DType::u8 && codes.dims() == 2 && codes.contiguous(),
                     "codes must be uint8 [O, I]");
            const IntShape shape = check_shape(codes.size(0), codes.size(1), group, bits, !zeros.is_none());
            const int64_t heads = shape.outputs * shape.groups();
            HR_CHECK(scales.dtype() == DType::f16 && scales.contiguous() && scales.size() == heads,
                     "scales must be float16 [O, groups]");
            uint8_t* target = const_cast<uint8_t*>(check_packed(packed, shape));
            table.pack(shape,
                       {codes.data<const uint8_t>(), scales.data<const uint16_t>(),
                        optional<uint8_t>(zeros, "zeros", DType::u8, heads)},
                       target);
        },
        "codes"_a, "scales"_a, "zeros"_a.none(), "group"_a, "bits"_a, "packed"_a);
    m.def(
        "int_linear_round_and_pack",
        [&table](nb::handle rows_object, int64_t group, int bits, bool zeros, nb::handle packed_object) {
            const Array rows(rows_object, "rows"), packed(packed_object, "packed");
            const Floats from = check_floats(rows);
            const IntShape shape = check_shape(rows.size(0), rows.size(1), group, bits, zeros);
            const Unfit unfit = table.round(shape, from, const_cast<uint8_t*>(check_packed(packed, shape)));
            HR_CHECK(unfit != Unfit::not_finite, "%s", kNotFinite);
            HR_CHECK(unfit != Unfit::too_large, "%s", kTooLarge);
        },
        "rows"_a, "group"_a, "bits"_a, "zeros"_a, "packed"_a);
    def_call(m, "int_linear_outputs",
             [&table](nb::handle packed_object, int64_t outputs, int64_t width, int64_t group, int bits,
                      bool zeros, nb::handle ids_object, nb::handle out_object) {
                 const IntShape shape = check_shape(outputs, width, group, bits, zeros);
                 const Array packed(packed_object, "packed");
                 const Lookup lookup = check_lookup(ids_object, out_object, outputs, width);
                 return [&table, shape, lookup, bytes = check_packed(packed, shape)] {
                     lookup.check_ids();
                     table.read_outputs(shape, bytes, lookup.ids, lookup.count, lookup.out);
                 };
             });
}

}  // namespace headrace
