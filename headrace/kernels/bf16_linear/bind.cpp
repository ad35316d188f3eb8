// bf16_linear: checks the arguments and calls the kernels of one level.
#include <nanobind/nanobind.h>

#include "bf16_linear/kernel.h"
#include "headrace/array.h"
#include "headrace/calls.h"
#include "headrace/check.h"
#include "headrace/pool.h"
#include "headrace/product_check.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace headrace {
namespace {

using Int = long long;  // for messages

HR_TABLE_OF(Bf16LinearTable, bf16_linear)

Bf16Shape check_shape(int64_t outputs, int64_t width) {
    check_size(outputs, width);
    return {width, outputs};
}

bf16* check_packed(const Array& packed, const Bf16Shape& shape) {
    const int64_t wanted = shape.blocks() * shape.block_items();
    HR_CHECK(packed.dtype() == DType::bf16 && packed.contiguous() && packed.size() == wanted,
             "packed has %lld numbers, this shape needs %lld of bfloat16", static_cast<Int>(packed.size()),
             static_cast<Int>(wanted));
    return packed.data<bf16>();
}

}  // namespace

void bind_bf16_linear(nb::module_& m, Level level) {
    const Bf16LinearTable& table = table_of(level);
    def_call(
        m, "bf16_linear",
        [&table](nb::handle x_object, nb::handle packed_object, int64_t outputs, int64_t width,
                 nb::handle out, nb::handle bias, nb::handle add, int before, nb::handle norm, float eps,
                 float offset) {
            const Bf16Shape shape = check_shape(outputs, width);
            const Array x(x_object, "x"), packed(packed_object, "packed");
            const RowSource source = check_rows(x, width, before, norm, eps, offset);
            const int64_t rows = x.size(0);
            bf16* weights = check_packed(packed, shape);
            const ProductEnd end = check_end(out, bias, add, rows, outputs);
            return [&table, shape, source, rows, weights, end] {
                if (rows == 0) return;
                const int64_t tiled = (rows + 31) / 32 * 32, chunk_items = tiled * Bf16Shape::kChunk;
                void* memory = scratch(Scratch::call, shape.chunks() * chunk_items * table.row_item_bytes);
                table.multiply({{shape, source, memory, rows, Bf16Shape::kChunk, chunk_items, end}, weights});
            };
        },
        "x"_a, "packed"_a, "outputs"_a, "width"_a, "out"_a, "bias"_a.none(), "add"_a.none(), "before"_a,
        "norm"_a.none(), "eps"_a, "offset"_a);
    m.def("bf16_linear_pack", [&table](nb::handle weight_object, nb::handle packed_object) {
        const Array weight(weight_object, "weight"), packed(packed_object, "packed");
        const Floats from = check_floats(weight);
        const Bf16Shape shape = check_shape(weight.size(0), weight.size(1));
        table.pack(shape, from, check_packed(packed, shape));
    });
    def_call(m, "bf16_linear_outputs",
             [&table](nb::handle packed_object, int64_t outputs, int64_t width, nb::handle ids_object,
                      nb::handle out_object) {
                 const Bf16Shape shape = check_shape(outputs, width);
                 const Array packed(packed_object, "packed");
                 const Lookup lookup = check_lookup(ids_object, out_object, outputs, width);
                 return [&table, shape, lookup, bytes = check_packed(packed, shape)] {
                     lookup.check_ids();
                     table.read_outputs(shape, bytes, lookup.ids, lookup.count, lookup.out);
                 };
             });
}

}  // namespace headrace
