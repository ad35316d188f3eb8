// draw: checks the arguments and calls the kernels of one level.
#include <nanobind/nanobind.h>

#include "draw/kernel.h"
#include "headrace/array.h"
#include "headrace/check.h"

namespace nb = nanobind;

namespace headrace {
namespace {

HR_TABLE_OF(DrawTable, draw)

Logits check_logits(nb::handle object) {
    const Array x(object, "logits");
    HR_CHECK(x.dtype() == DType::f32 && x.dims() == 1 && x.contiguous(), "logits must be float32 [V]");
    HR_CHECK(x.size() > 0 && x.size() <= int64_t{1} << kMostTokensLog2,
             "logits of %lld tokens; known: 1 to 2^%d", static_cast<long long>(x.size()), kMostTokensLog2);
    return {x.data<float>(), x.size()};
}

}  // namespace

void bind_draw(nb::module_& m, Level level) {
    const DrawTable& table = table_of(level);
    m.def("draw_top_k", [&table](nb::handle logits, int64_t k) {
        HR_CHECK(k > 0, "k=%lld: at least 1 is needed", static_cast<long long>(k));
        table.top_k(check_logits(logits), k);
    });
    m.def("draw_top_p", [&table](nb::handle logits, double p) {
        HR_CHECK(p > 0 && p < 1, "p=%g: between 0 and 1", p);
        table.top_p(check_logits(logits), p);
    });
    m.def("draw_min_p", [&table](nb::handle logits, float log_p) {
        HR_CHECK(log_p <= 0, "log_p=%g: at most 0", static_cast<double>(log_p));
        table.min_p(check_logits(logits), log_p);
    });
    m.def("draw", [&table](nb::handle logits, double u) {
        HR_CHECK(u >= 0 && u < 1, "u=%g: at least 0, below 1", u);
        return table.draw(check_logits(logits), u);
    });
}

}  // namespace headrace
