// The instruction-set levels compiled into this binary, lowest first (the list is made by
// native/CMakeLists.txt).
#pragma once

#include "headrace_build.h"

namespace headrace {

enum class Level {
#define X(level) level,
    HR_FOR_EACH_LEVEL(X)
#undef X
};

}  // namespace headrace
