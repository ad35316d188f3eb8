// How a kernel cuts its work.
//
// The contract a kernel writes against: pieces run in any order and on any thread, so what is computed for
// an index depends on that index alone. Nothing is reduced across pieces.
#pragma once

#ifndef HR_LEVEL
#error "parallel.h is for sources that are compiled per level"
#endif

#include <stdint.h>

#include "headrace/pool.h"

namespace headrace::HR_LEVEL {

// function(begin, end) over [0, count), at most `grain` indices at a time.
template <class Function>
inline void in_pieces(int64_t count, int64_t grain, const Function& function) {
    run_parallel(
        count, grain,
        [](void* context, int64_t begin, int64_t end) {
            (*static_cast<const Function*>(context))(begin, end);
        },
        const_cast<Function*>(&function));
}

// function(row) for every row; rows of `cost` elementary operations go to other threads only if they are
// worth the microsecond that waking these takes.
template <class Function>
inline void for_each_row(int64_t rows, int64_t cost, const Function& function) {
    constexpr int64_t kWorthwhile = 1 << 14;
    const int64_t grain = cost >= kWorthwhile ? 1 : kWorthwhile / (cost > 0 ? cost : 1) + 1;
    auto piece = [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row) function(row);
    };
    in_pieces(rows, grain, piece);
}

}  // namespace headrace::HR_LEVEL
