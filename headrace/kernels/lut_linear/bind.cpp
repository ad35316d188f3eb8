// lut_linear: checks the arguments and calls the kernels of one level.
#include <nanobind/nanobind.h>

#include "headrace/array.h"
#include "headrace/calls.h"
#include "headrace/check.h"
#include "headrace/product_check.h"
#include "lut_linear/kernel.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace headrace {
namespace {

using Int = long long;  // for messages

HR_TABLE_OF(LutLinearTable, lut_linear)

IntShape check_shape(int64_t outputs, int64_t width, int64_t group, int bits) {
    check_size(outputs, width);
    HR_CHECK(width <= kMostLutWidth, "%lld inputs: sums of more than %lld may exceed 32 bits",
             static_cast<Int>(width), static_cast<Int>(kMostLutWidth));
    HR_CHECK(bits >= 1 && bits <= kMostLutBits, "%d bits; known: 1 to %d", bits, kMostLutBits);
    return {width, outputs, check_group(group, width, kChunk), bits, /*zeros=*/false};
}

// Of packed weights.
IntShape check_order(const LutLinearTable& table, bool wide, IntShape shape) {
    HR_CHECK(wide == table.wide,
             "weights packed for levels with %s tables: pack them on the level that multiplies",
             wide ? "wide" : "narrow");
    return shape;
}

}  // namespace

void bind_lut_linear(nb::module_& m, Level level) {
    const LutLinearTable& table = table_of(level);
    m.def("lut_linear_wide", [&table] { return table.wide; });
    def_call(
        m, "lut_linear",
        [&table](nb::handle x_object, nb::handle packed_object, int64_t outputs, int64_t width, int64_t group,
                 int bits, bool wide, nb::handle out_object, nb::handle bias, nb::handle add, int before,
                 nb::handle norm, float eps, float offset) {
            const IntShape shape = check_order(table, wide, check_shape(outputs, width, group, bits));
            const Array x(x_object, "x"), packed(packed_object, "packed");
            const RowSource source = check_rows(x, shape.width, before, norm, eps, offset);
            const int64_t rows = x.size(0);
            const uint8_t* bytes = check_packed(packed, shape);
            const ProductEnd end = check_end(out_object, bias, add, rows, outputs);
            return [&table, shape, source, rows, bytes, end] {
                table.multiply(shape, source, rows, bytes, end);
            };
        },
        "x"_a, "packed"_a, "outputs"_a, "width"_a, "group"_a, "bits"_a, "wide"_a, "out"_a, "bias"_a.none(),
        "add"_a.none(), "before"_a, "norm"_a.none(), "eps"_a, "offset"_a);
    m.def(
        "lut_linear_tables",
        [&table](nb::handle x_object, int64_t group, nb::handle tables_object, nb::handle scales_object,
                 nb::handle sums_object, int before, nb::handle norm, float eps, float offset) {
            const Array x(x_object, "x"), tables(tables_object, "tables"), scales(scales_object, "scales"),
                sums(sums_object, "sums");
            HR_CHECK(x.dims() == 2, "x must have two dimensions");
            const bool gate = before >= static_cast<int>(Before::silu_gate);
            const IntShape shape = check_shape(1, x.size(1) / (gate ? 2 : 1), group, 1);
            const RowSource source = check_rows(x, shape.width, before, norm, eps, offset);
            const int64_t rows = x.size(0), heads = rows * shape.groups();
            HR_CHECK(tables.dtype() == DType::u8 && tables.contiguous() &&
                         tables.size() == rows * shape.padded() * 4 && scales.dtype() == DType::f32 &&
                         scales.contiguous() && scales.size() == heads && sums.dtype() == DType::i32 &&
                         sums.contiguous() && sums.size() == heads,
                     "tables, scales or sums do not fit x");
            table.tabulate(shape, source,
                           {tables.data<uint8_t>(), scales.data<float>(), sums.data<int32_t>(), rows});
        },
        "x"_a, "group"_a, "tables"_a, "scales"_a, "sums"_a, "before"_a, "norm"_a.none(), "eps"_a, "offset"_a);
    m.def(
        "lut_linear_pack",
        [&table](nb::handle codes_object, nb::handle scales_object, int64_t group, int bits,
                 nb::handle packed_object) {
            const Array codes(codes_object, "codes"), scales(scales_object, "scales"),
                packed(packed_object, "packed");
            HR_CHECK(codes.dtype() == DType::u8 && codes.dims() == 2 && codes.contiguous(),
                     "codes must be uint8 [O, I]");
            const IntShape shape = check_shape(codes.size(0), codes.size(1), group, bits);
            HR_CHECK(scales.dtype() == DType::f16 && scales.contiguous() &&
                         scales.size() == shape.outputs * shape.groups(),
                     "scales must be float16 [O, groups]");
            table.pack(shape, {codes.data<const uint8_t>(), scales.data<const uint16_t>(), nullptr},
                       const_cast<uint8_t*>(check_packed(packed, shape)));
        },
        "codes"_a, "scales"_a, "group"_a, "bits"_a, "packed"_a);
    m.def(
        "lut_linear_round_and_pack",
        [&table](nb::handle rows_object, int64_t group, int bits, nb::handle packed_object) {
            const Array rows(rows_object, "rows"), packed(packed_object, "packed");
            const Floats from = check_floats(rows);
            const IntShape shape = check_shape(rows.size(0), rows.size(1), group, bits);
            const Unfit unfit = table.round(shape, from, const_cast<uint8_t*>(check_packed(packed, shape)));
            HR_CHECK(unfit != Unfit::not_finite, "%s", kNotFinite);
            HR_CHECK(unfit != Unfit::too_large, "%s", kTooLarge);
        },
        "rows"_a, "group"_a, "bits"_a, "packed"_a);
    def_call(m, "lut_linear_outputs",
             [&table](nb::handle packed_object, int64_t outputs, int64_t width, int64_t group, int bits,
                      bool wide, nb::handle ids_object, nb::handle out_object) {
                 const IntShape shape = check_order(table, wide, check_shape(outputs, width, group, bits));
                 const Array packed(packed_object, "packed");
                 const Lookup lookup = check_lookup(ids_object, out_object, outputs, width);
                 return [&table, shape, lookup, bytes = check_packed(packed, shape)] {
                     lookup.check_ids();
                     table.read_outputs(shape, bytes, lookup.ids, lookup.count, lookup.out);
                 };
             });
}

}  // namespace headrace
