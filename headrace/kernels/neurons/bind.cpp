// neurons: checks the arguments and calls the kernel of one level.
#include <nanobind/nanobind.h>

#include "headrace/array.h"
#include "headrace/calls.h"
#include "headrace/check.h"
#include "headrace/pool.h"
#include "headrace/product_check.h"
#include "neurons/kernel.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace headrace {
namespace {

using Int = long long;  // for messages

HR_TABLE_OF(NeuronsTable, neurons)

void check_weights(const Array& up, const Array& down) {
    HR_CHECK(up.dims() == 2 && down.dims() == 2 && up.contiguous() && down.contiguous() &&
                 up.size(0) == down.size(0) && up.size(1) == down.size(1) && up.size(0) > 0 && up.size(1) > 0,
             "up and down must be contiguous [F, D], both of one shape");
    HR_CHECK(up.size(0) <= INT32_MAX, "%lld neurons", static_cast<Int>(up.size(0)));
    HR_CHECK(up.dtype() == down.dtype() && (up.dtype() == DType::f32 || up.dtype() == DType::bf16),
             "up and down must be both float32 or both bfloat16");
}

}  // namespace

void bind_neurons(nb::module_& m, Level level) {
    const NeuronsTable& table = table_of(level);
    def_call(
        m, "neurons",
        [&table](nb::handle x_object, nb::handle gate_object, nb::handle up_object, nb::handle down_object,
                 nb::handle out, nb::handle add, float threshold, bool gelu, int before, nb::handle norm,
                 float eps, float offset) {
            const Array x(x_object, "x"), gate(gate_object, "gate");
            const Array up(up_object, "up"), down(down_object, "down");
            check_weights(up, down);
            Neurons a{};
            a.neurons = up.size(0), a.width = up.size(1);
            a.source = check_rows(x, a.width, before, norm, eps, offset);
            a.rows = x.size(0);
            HR_CHECK(gate.dtype() == DType::f32 && gate.contiguous() && gate.size() == a.rows * a.neurons,
                     "gate must be float32 [%lld, %lld]", static_cast<Int>(a.rows),
                     static_cast<Int>(a.neurons));
            a.gate = gate.data<float>();
            a.up = up.data<const void>(), a.down = down.data<const void>();
            a.is_bf16 = up.dtype() == DType::bf16, a.gelu = gelu, a.threshold = threshold;
            a.end = check_end(out, nb::none(), add, a.rows, a.width);
            return [&table, a] {
                if (a.rows == 0) return;
                Neurons call = a;
                call.memory = static_cast<float*>(scratch(Scratch::call, a.items() * int64_t{sizeof(float)}));
                table.run(call);
            };
        },
        "x"_a, "gate"_a, "up"_a, "down"_a, "out"_a, "add"_a.none(), "threshold"_a, "gelu"_a, "before"_a,
        "norm"_a.none(), "eps"_a, "offset"_a);
}

}  // namespace headrace
