// dfloat_linear: checks the arguments and calls the kernels of one level.
#include <nanobind/nanobind.h>

#include "dfloat_linear/kernel.h"
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

HR_TABLE_OF(DfloatLinearTable, dfloat_linear)

DfloatShape check_shape(int64_t outputs, int64_t width) {
    check_size(outputs, width);
    return {{width, outputs}};
}

uint8_t* check_bytes(nb::handle object, const char* name, int64_t wanted) {
    const Array bytes(object, name);
    HR_CHECK(bytes.dtype() == DType::u8 && bytes.contiguous() && bytes.size() == wanted,
             "%s has %lld numbers, this shape needs %lld bytes", name, static_cast<Int>(bytes.size()),
             static_cast<Int>(wanted));
    return bytes.data<uint8_t>();
}

DfloatWeight check_weight(const DfloatShape& shape, nb::handle planes, nb::handle escapes_object,
                          nb::handle starts_object) {
    const Array escapes(escapes_object, "escapes"), starts(starts_object, "starts");
    HR_CHECK(starts.dtype() == DType::i64 && starts.contiguous() && starts.size() == shape.blocks() + 1,
             "starts must be int64 [%lld]", static_cast<Int>(shape.blocks() + 1));
    return {shape, check_bytes(planes, "planes", shape.blocks() * shape.block_bytes()),
            check_bytes(escapes_object, "escapes", escapes.size()), starts.data<const int64_t>(),
            escapes.size()};
}

constexpr const char kDamaged[] = "the escapes of a weight are damaged in memory: load the model again";

}  // namespace

void bind_dfloat_linear(nb::module_& m, Level level) {
    const DfloatLinearTable& table = table_of(level);
    def_call(
        m, "dfloat_linear",
        [&table](nb::handle x_object, nb::handle planes, nb::handle escapes, nb::handle starts,
                 int64_t outputs, int64_t width, nb::handle out, nb::handle bias, nb::handle add, int before,
                 nb::handle norm, float eps, float offset) {
            const DfloatShape shape = check_shape(outputs, width);
            const Array x(x_object, "x");
            const RowSource source = check_rows(x, width, before, norm, eps, offset);
            const int64_t rows = x.size(0);
            const DfloatWeight weight = check_weight(shape, planes, escapes, starts);
            const ProductEnd end = check_end(out, bias, add, rows, outputs);
            return [&table, shape, source, rows, weight, end] {
                if (rows == 0) return;
                const int64_t tiled = (rows + 31) / 32 * 32, chunk_items = tiled * Bf16Shape::kChunk;
                void* memory = scratch(Scratch::call, shape.chunks() * chunk_items * table.row_item_bytes);
                HR_CHECK(table.multiply(
                             {{shape, source, memory, rows, Bf16Shape::kChunk, chunk_items, end}, weight}),
                         "%s", kDamaged);
            };
        },
        "x"_a, "planes"_a, "escapes"_a, "starts"_a, "outputs"_a, "width"_a, "out"_a, "bias"_a.none(),
        "add"_a.none(), "before"_a, "norm"_a.none(), "eps"_a, "offset"_a);
    m.def("dfloat_linear_pack",
          [&table](nb::handle weight_object, nb::handle planes, nb::handle escapes, nb::handle sizes_object) {
              const Array weight(weight_object, "weight"), sizes(sizes_object, "sizes");
              const Floats from = check_floats(weight);
              const DfloatShape shape = check_shape(weight.size(0), weight.size(1));
              HR_CHECK(sizes.dtype() == DType::i64 && sizes.contiguous() && sizes.size() == shape.blocks(),
                       "sizes must be int64 [%lld]", static_cast<Int>(shape.blocks()));
              table.pack(shape, from, check_bytes(planes, "planes", shape.blocks() * shape.block_bytes()),
                         check_bytes(escapes, "escapes",
                                     shape.blocks() * shape.chunks() * DfloatShape::kMostEscapeBytes),
                         sizes.data<int64_t>());
          });
    def_call(m, "dfloat_linear_outputs",
             [&table](nb::handle planes, nb::handle escapes, nb::handle starts, int64_t outputs,
                      int64_t width, nb::handle ids_object, nb::handle out_object) {
                 const DfloatShape shape = check_shape(outputs, width);
                 const DfloatWeight weight = check_weight(shape, planes, escapes, starts);
                 const Lookup lookup = check_lookup(ids_object, out_object, outputs, width);
                 return [&table, weight, lookup] {
                     lookup.check_ids();
                     HR_CHECK(table.read_outputs(weight, lookup.ids, lookup.count, lookup.out), "%s",
                              kDamaged);
                 };
             });
}

}  // namespace headrace
