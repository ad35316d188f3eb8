// Arguments of attention over pages, as Python hands them over. Raises ValueError where they do not fit.
#pragma once

#include <nanobind/nanobind.h>

#include "headrace/array.h"
#include "headrace/attention_rows.h"
#include "headrace/check.h"

namespace headrace {

inline void check_i64(const Array& x, int64_t count) {
    HR_CHECK(x.dtype() == DType::i64 && x.contiguous() && x.size() == count,
             "%s must be int64, with %lld values", x.name(), static_cast<long long>(count));
}

// Rows that Python hands over, and the pages that there are.
struct CheckedRows {
    AttentionRows rows;
    int64_t num_pages;

    // Pages and runs lie in memory: they may have changed since the rest was checked. Each of `arena_pages`
    // has page_tokens; runs begin at multiples of `unit` tokens and have at least `least`.
    void check_runs(int64_t unit, int64_t least, int64_t page_tokens, int64_t arena_pages) const {
        using Int = long long;  // for messages
        for (int64_t i = 0; i < num_pages; ++i)
            HR_CHECK(rows.pages[i] >= 0 && rows.pages[i] < arena_pages, "page %lld of %lld",
                     static_cast<Int>(rows.pages[i]), static_cast<Int>(arena_pages));
        for (int64_t i = 0; i < rows.num_runs; ++i) {
            const Run& run = rows.runs[i];
            const int64_t pages = (run.length + page_tokens - 1) / page_tokens;
            HR_CHECK(0 <= run.first_row && run.first_row < run.end_row && run.end_row <= rows.rows &&
                         run.length >= least && run.start >= 0 && run.start % unit == 0 &&
                         run.first_page >= 0 && run.first_page + pages <= num_pages,
                     "run %lld does not fit", static_cast<Int>(i));
            if (i > 0 && rows.runs[i - 1].first_row == run.first_row)
                HR_CHECK(rows.runs[i - 1].start + rows.runs[i - 1].length <= run.start,
                         "run %lld overlaps the one before it", static_cast<Int>(i));
        }
    }
};

// q is [T, N, H]; rows of it are contiguous but need not follow each other.
inline CheckedRows check_rows(const Array& q, int64_t kv_heads, nanobind::handle positions_object,
                              nanobind::handle pages_object, nanobind::handle runs_object, float scale,
                              int64_t window, int64_t sink, nanobind::handle out_object,
                              nanobind::handle lse_object) {
    const Array positions(positions_object, "positions"), pages(pages_object, "pages"),
        runs(runs_object, "runs"), out(out_object, "out"), lse(lse_object, "lse");
    HR_CHECK(q.dims() == 3 && q.dtype() == DType::f32 && q.inner_contiguous(),
             "q must be float32 [T, N, H] with contiguous rows");
    const int64_t rows = q.size(0), heads = q.size(1);
    HR_CHECK(heads % kv_heads == 0, "%lld query heads for %lld kv heads", static_cast<long long>(heads),
             static_cast<long long>(kv_heads));
    check_i64(positions, rows);
    check_i64(pages, pages.size());
    HR_CHECK(runs.dims() == 2 && runs.size(1) == 5, "runs must be [W, 5]");
    check_i64(runs, runs.size());
    HR_CHECK(out.dtype() == DType::f32 && out.contiguous() && out.size() == q.size() &&
                 lse.dtype() == DType::f32 && lse.contiguous() && lse.size() == rows * heads,
             "out or lse do not fit q");
    return {{q.data<const float>(), q.stride(0), rows, heads, positions.data<const int64_t>(),
             pages.data<const int64_t>(), runs.data<const Run>(), runs.size(0), scale, window, sink,
             out.data<float>(), lse.data<float>()},
            pages.size()};
}

}  // namespace headrace
