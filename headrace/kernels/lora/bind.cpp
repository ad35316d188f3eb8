// lora: checks the arguments and calls the kernel of one level.
#include <nanobind/nanobind.h>

#include <vector>

#include "headrace/array.h"
#include "headrace/calls.h"
#include "headrace/check.h"
#include "headrace/pool.h"
#include "headrace/product_check.h"
#include "lora/kernel.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace headrace {
namespace {

using Int = long long;  // for messages

HR_TABLE_OF(LoraTable, lora)

// Parts [P, 3] of ranks, first output and outputs, as they lie in memory.
static_assert(sizeof(LoraPart) == 3 * sizeof(int64_t));

void check_parts(LoraGroup& group, const Array& parts, int64_t outputs) {
    HR_CHECK(parts.dtype() == DType::i64 && parts.dims() == 2 && parts.size(1) == 3 && parts.contiguous(),
             "parts must be int64 [P, 3]");
    group.parts = parts.data<const LoraPart>();
    group.part_count = parts.size(0);
    for (int64_t i = 0; i < group.part_count; ++i) {
        const LoraPart& part = group.parts[i];
        HR_CHECK(part.ranks > 0 && part.ranks <= 1 << 16 && part.first >= 0 && part.outputs > 0 &&
                     part.first <= outputs && part.outputs <= outputs - part.first,
                 "a part of %lld ranks for outputs %lld and %lld more, of %lld", static_cast<Int>(part.ranks),
                 static_cast<Int>(part.first), static_cast<Int>(part.outputs), static_cast<Int>(outputs));
        group.ranks += part.ranks;
    }
}

// Which inputs or outputs the ranks are; null if the array is a matrix.
const int64_t* check_indices(const Array& array, int64_t ranks, int64_t limit) {
    if (array.dtype() != DType::i64) return nullptr;
    HR_CHECK(array.contiguous() && array.size() == ranks, "%s has %lld indices for %lld ranks", array.name(),
             static_cast<Int>(array.size()), static_cast<Int>(ranks));
    const auto* indices = array.data<const int64_t>();
    for (int64_t i = 0; i < ranks; ++i)
        HR_CHECK(indices[i] > (i > 0 ? indices[i - 1] : -1) && indices[i] < limit,
                 "indices of %s must rise, and be less than %lld", array.name(), static_cast<Int>(limit));
    return indices;
}

// What one adapter adds: (rows, down, up, scale, parts).
LoraGroup check_group(nb::handle tuple, const Lora& a, int64_t rows) {
    const Array row(tuple[0], "rows"), down(tuple[1], "down"), up(tuple[2], "up"), scale(tuple[3], "scale"),
        parts(tuple[4], "parts");
    LoraGroup group{};
    check_parts(group, parts, a.outputs);
    int64_t items = 0;
    for (int64_t i = 0; i < group.part_count; ++i) items += group.parts[i].items();
    group.inputs = check_indices(down, group.ranks, a.width);
    group.outputs = check_indices(up, group.ranks, a.outputs);
    const DType dtype = group.inputs != nullptr ? up.dtype() : down.dtype();
    HR_CHECK((dtype == DType::f32 || dtype == DType::bf16) &&
                 (group.inputs != nullptr || group.outputs != nullptr || up.dtype() == dtype),
             "down and up must be both float32 or both bfloat16, or one of them indices");
    HR_CHECK(group.inputs != nullptr || (down.contiguous() && down.size() == group.ranks * a.padded()),
             "down has %lld numbers, these ranks need %lld", static_cast<Int>(down.size()),
             static_cast<Int>(group.ranks * a.padded()));
    HR_CHECK(group.outputs != nullptr || (up.contiguous() && up.size() == items),
             "up has %lld numbers, these parts need %lld", static_cast<Int>(up.size()),
             static_cast<Int>(items));
    HR_CHECK(scale.dtype() == DType::f32 && scale.contiguous() && scale.size() == group.ranks,
             "scale must be float32 [%lld]", static_cast<Int>(group.ranks));
    HR_CHECK(row.dtype() == DType::i64 && row.contiguous() && row.dims() == 1, "rows must be int64 [A]");
    group.rows = row.data<const int64_t>();
    group.row_count = row.size();
    for (int64_t i = 0; i < group.row_count; ++i) {
        HR_CHECK(group.rows[i] >= 0 && group.rows[i] < rows, "row %lld of %lld",
                 static_cast<Int>(group.rows[i]), static_cast<Int>(rows));
    }
    group.down = down.data<const void>();
    group.up = up.data<const void>();
    group.is_bf16 = dtype == DType::bf16;
    group.scale = scale.data<const float>();
    group.first_row = a.row_count;
    return group;
}

// Rows of several adapters are written at the same time: none may be in two groups.
void check_apart(const std::vector<LoraGroup>& groups, int64_t rows) {
    std::vector<bool> seen(static_cast<size_t>(rows));
    for (const LoraGroup& group : groups) {
        for (int64_t i = 0; i < group.row_count; ++i) {
            const auto row = static_cast<size_t>(group.rows[i]);
            HR_CHECK(!seen[row], "row %lld comes twice", static_cast<Int>(row));
            seen[row] = true;
        }
    }
}

}  // namespace

void bind_lora(nb::module_& m, Level level) {
    const LoraTable& table = table_of(level);
    def_call(
        m, "lora",
        [&table](nb::handle x_object, nb::handle out_object, int64_t width, nb::list tuples, int before,
                 nb::handle norm, float eps, float offset) {
            const Array x(x_object, "x"), out(out_object, "out");
            HR_CHECK(out.dims() == 2 && out.dtype() == DType::f32 && out.contiguous(),
                     "out must be contiguous float32 [T, O]");
            HR_CHECK(width > 0, "rows of %lld inputs", static_cast<Int>(width));
            Lora a{};
            a.source = check_rows(x, width, before, norm, eps, offset);
            HR_CHECK(x.size(0) == out.size(0), "x has %lld rows, out %lld", static_cast<Int>(x.size(0)),
                     static_cast<Int>(out.size(0)));
            a.width = width;
            a.outputs = out.size(1);
            a.out = out.data<float>();
            std::vector<LoraGroup> groups;
            for (nb::handle tuple : tuples) {
                groups.push_back(check_group(tuple, a, x.size(0)));
                a.row_count += groups.back().row_count;
                a.most_ranks = groups.back().ranks > a.most_ranks ? groups.back().ranks : a.most_ranks;
            }
            check_apart(groups, x.size(0));
            return [&table, a, groups] {
                if (a.row_count == 0) return;
                Lora call = a;
                call.groups = groups.data();
                call.group_count = static_cast<int64_t>(groups.size());
                call.inputs = static_cast<float*>(scratch(
                    Scratch::call, a.row_count * (a.padded() + a.most_ranks) * int64_t{sizeof(float)}));
                call.hidden = call.inputs + a.row_count * a.padded();
                table.add(call);
            };
        },
        "x"_a, "out"_a, "width"_a, "groups"_a, "before"_a, "norm"_a.none(), "eps"_a, "offset"_a);
}

}  // namespace headrace
