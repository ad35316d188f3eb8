// How a kernel walks its rows.
//
// The contract a kernel writes against: rows run in any order and on any thread, so what is computed for a
// row depends on that row alone. Today they run in order, on the calling thread.
#pragma once

#ifndef HR_LEVEL
#error "parallel.h is for sources that are compiled per level"
#endif

#include <stdint.h>

namespace headrace::HR_LEVEL {

template <class Function>
inline void for_each_row(int64_t rows, Function&& function) {
    for (int64_t row = 0; row < rows; ++row) function(row);
}

}  // namespace headrace::HR_LEVEL
