// Where the quantised rows of a product lie while it runs. For bind.cpp: not compiled per level.
#pragma once

#include "headrace/pool.h"
#include "int_linear/kernel.h"

namespace headrace {

// Room for whole tiles of rows: what lies in the last ones beyond the rows is computed with and dropped.
inline IntRows rows_in_scratch(const IntShape& shape, int64_t rows, bool stepwise) {
    constexpr int64_t kTileRows = 32;
    const int64_t tiled = (rows + kTileRows - 1) / kTileRows * kTileRows, step = shape.step();
    const int64_t codes = tiled * shape.steps() * step + 63, scales = rows * 4 + 63;
    char* memory = static_cast<char*>(scratch(Scratch::call, codes + scales + rows * shape.groups() * 4));
    return {reinterpret_cast<int8_t*>(memory),
            reinterpret_cast<float*>(memory + codes / 64 * 64),
            reinterpret_cast<int32_t*>(memory + codes / 64 * 64 + scales / 64 * 64),
            rows,
            stepwise ? step : shape.steps() * step,
            stepwise ? tiled * step : step};
}

}  // namespace headrace
