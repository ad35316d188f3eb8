// sparse_add: checks the arguments and calls the kernels of one level.
#include <nanobind/nanobind.h>

#include "headrace/array.h"
#include "headrace/calls.h"
#include "headrace/check.h"
#include "headrace/pool.h"
#include "headrace/product_check.h"
#include "sparse_add/kernel.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace headrace {
namespace {

using Int = long long;  // for messages

HR_TABLE_OF(SparseAddTable, sparse_add)

SparseWeight check_weight(nb::handle starts_object, nb::handle entries_object, int64_t width) {
    const Array starts(starts_object, "starts"), entries(entries_object, "entries");
    HR_CHECK(starts.dtype() == DType::i32 && starts.dims() == 1 && starts.contiguous() && starts.size() > 1,
             "starts must be int32 [O + 1]");
    HR_CHECK(entries.dtype() == DType::i32 && entries.dims() == 1 && entries.contiguous(),
             "entries must be int32 [E]");
    HR_CHECK(width > 0 && width <= kSparseMostWidth, "%lld inputs: 1 to %lld have room in an entry",
             static_cast<Int>(width), static_cast<Int>(kSparseMostWidth));
    return {starts.size() - 1, width, starts.data<const int32_t>(), entries.data<const uint32_t>(),
            entries.size()};
}

constexpr const char kDamaged[] = "the sparse part of a weight is damaged in memory: load the model again";

}  // namespace

void bind_sparse_add(nb::module_& m, Level level) {
    const SparseAddTable& table = table_of(level);
    def_call(
        m, "sparse_add",
        [&table](nb::handle x_object, nb::handle starts, nb::handle entries, int64_t width,
                 nb::handle out_object, int before, nb::handle norm, float eps, float offset) {
            const Array x(x_object, "x");
            const SparseWeight weight = check_weight(starts, entries, width);
            const RowSource source = check_rows(x, width, before, norm, eps, offset);
            const int64_t rows = x.size(0);
            const ProductEnd end = check_end(out_object, nb::none(), nb::none(), rows, weight.outputs);
            return [&table, weight, source, rows, out = end.out] {
                if (rows == 0) return;
                const int64_t padded = rows == 1 ? 1 : (rows + 15) / 16 * 16;
                float* room = static_cast<float*>(scratch(Scratch::call, padded * weight.width * 4));
                HR_CHECK(table.add({weight, source, room, rows, out}), "%s", kDamaged);
            };
        },
        "x"_a, "starts"_a, "entries"_a, "width"_a, "out"_a, "before"_a, "norm"_a.none(), "eps"_a, "offset"_a);
    def_call(m, "sparse_add_outputs",
             [&table](nb::handle starts, nb::handle entries, int64_t width, nb::handle ids_object,
                      nb::handle out_object) {
                 const SparseWeight weight = check_weight(starts, entries, width);
                 const Lookup lookup = check_lookup(ids_object, out_object, weight.outputs, width);
                 return [&table, weight, lookup] {
                     lookup.check_ids();
                     HR_CHECK(table.put_outputs(weight, lookup.ids, lookup.count, lookup.out), "%s",
                              kDamaged);
                 };
             });
}

}  // namespace headrace
