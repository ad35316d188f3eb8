// best_pages: checks the arguments and calls the kernel of one level.
#include <nanobind/nanobind.h>

#include "best_pages/kernel.h"
#include "headrace/array.h"
#include "headrace/attention_check.h"
#include "headrace/check.h"

namespace nb = nanobind;

namespace headrace {
namespace {

HR_TABLE_OF(BestPagesTable, best_pages)

void check_bounds(const BestPages& a) {
    for (int64_t r = 0; r < a.rows; ++r)
        HR_CHECK(a.first[r] >= 0 && a.pages[r] >= 0 && a.pages[r] <= a.width && a.kept[r] >= 0 &&
                     a.kept[r] <= a.pages[r],
                 "row %lld: its numbers of pages do not fit", static_cast<long long>(r));
}

}  // namespace

void bind_best_pages(nb::module_& m, Level level) {
    const BestPagesTable& table = table_of(level);
    m.def("best_pages",
          [&table](nb::handle scores_object, int64_t kv_heads, int64_t leading, nb::handle first_object,
                   nb::handle pages_object, nb::handle kept_object, nb::handle out_object) {
              const Array scores(scores_object, "scores"), first(first_object, "first"),
                  pages(pages_object, "pages"), kept(kept_object, "kept"), out(out_object, "out");
              HR_CHECK(scores.dtype() == DType::f32 && scores.dims() == 3 && scores.contiguous(),
                       "scores must be float32 [R, N, B], contiguous");
              HR_CHECK(kv_heads > 0 && scores.size(1) % kv_heads == 0, "%lld query heads for %lld kv heads",
                       static_cast<long long>(scores.size(1)), static_cast<long long>(kv_heads));
              HR_CHECK(leading >= 0, "leading must not be below 0");
              for (const Array* x : {&first, &pages, &kept}) check_i64(*x, scores.size(0));
              HR_CHECK(out.dtype() == DType::u8 && out.contiguous() &&
                           out.size() == kv_heads * scores.size(0) * scores.size(2),
                       "out must be uint8 [G, R, B]");
              const BestPages a{scores.data<const float>(),
                                scores.size(0),
                                scores.size(1),
                                scores.size(2),
                                kv_heads,
                                leading,
                                first.data<const int64_t>(),
                                pages.data<const int64_t>(),
                                kept.data<const int64_t>(),
                                out.data<uint8_t>()};
              check_bounds(a);
              nb::gil_scoped_release release;
              table.best(a);
          });
}

}  // namespace headrace
