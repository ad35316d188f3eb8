// dual_linear: checks the arguments and calls the kernels of one level.
#include <nanobind/nanobind.h>

#include "dual_linear/kernel.h"
#include "headrace/array.h"
#include "headrace/calls.h"
#include "headrace/check.h"
#include "headrace/product_check.h"
#include "int_linear/row_scratch.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace headrace {
namespace {

using Int = long long;  // for messages

HR_TABLE_OF(DualLinearTable, dual_linear)

DualShape check_shape(int64_t outputs, int64_t width, int64_t group, int bits) {
    check_size(outputs, width);
    HR_CHECK(bits == 3 || bits == 4, "%d bits; known: 3 and 4", bits);
    HR_CHECK(width <= kDualMaxWidth, "%lld inputs: sums of more than %lld may exceed 32 bits",
             static_cast<Int>(width), static_cast<Int>(kDualMaxWidth));
    return {width, outputs, check_group(group, width, kChunk), bits};
}

}  // namespace

void bind_dual_linear(nb::module_& m, Level level) {
    const DualLinearTable& table = table_of(level);
    def_call(
        m, "dual_linear",
        [&table](nb::handle x_object, nb::handle packed_object, int64_t outputs, int64_t width, int64_t group,
                 int bits, int64_t few, nb::handle out_object, nb::handle bias, nb::handle add, int before,
                 nb::handle norm, float eps, float offset) {
            const DualShape shape = check_shape(outputs, width, group, bits);
            const Array x(x_object, "x"), packed(packed_object, "packed");
            const RowSource source = check_rows(x, shape.width, before, norm, eps, offset);
            const int64_t rows = x.size(0);
            const uint8_t* bytes = check_packed(packed, shape);
            const ProductEnd end = check_end(out_object, bias, add, rows, outputs);
            return [&table, shape, source, rows, bytes, end, few] {
                if (rows == 0) return;
                const DualLinear product{shape, rows_in_scratch(shape, rows, rows > few), bytes, end, few};
                table.quantise(shape, source, product.rows);
                table.multiply(product);
            };
        },
        "x"_a, "packed"_a, "outputs"_a, "width"_a, "group"_a, "bits"_a, "few"_a, "out"_a, "bias"_a.none(),
        "add"_a.none(), "before"_a, "norm"_a.none(), "eps"_a, "offset"_a);
    m.def(
        "dual_linear_round_and_pack",
        [&table](nb::handle rows_object, int64_t group, int bits, nb::handle packed_object) {
            const Array rows(rows_object, "rows"), packed(packed_object, "packed");
            const Floats from = check_floats(rows);
            const DualShape shape = check_shape(rows.size(0), rows.size(1), group, bits);
            // As reference.py says it.
            HR_CHECK(
                table.round(shape, from, const_cast<uint8_t*>(check_packed(packed, shape))),
                "some weights are infinite or not a number: the checkpoint is damaged, download it again");
        },
        "rows"_a, "group"_a, "bits"_a, "packed"_a);
    def_call(m, "dual_linear_outputs",
             [&table](nb::handle packed_object, int64_t outputs, int64_t width, int64_t group, int bits,
                      nb::handle ids_object, nb::handle out_object) {
                 const DualShape shape = check_shape(outputs, width, group, bits);
                 const Array packed(packed_object, "packed");
                 const Lookup lookup = check_lookup(ids_object, out_object, outputs, width);
                 return [&table, shape, lookup, bytes = check_packed(packed, shape)] {
                     lookup.check_ids();
                     table.read_outputs(shape, bytes, lookup.ids, lookup.count, lookup.out);
                 };
             });
}

}  // namespace headrace
