// The instruction-set levels compiled into this binary, lowest first (the list is made by
// native/CMakeLists.txt).
#pragma once

#include "headrace/check.h"
#include "headrace_build.h"

namespace headrace {

enum class Level {
#define X(level) level,
    HR_FOR_EACH_LEVEL(X)
#undef X
};

}  // namespace headrace

// What an operation's cpu.cpp offers: a constant `name` in the namespace of each level. For kernel.h.
#define HR_TABLE(Table, name) HR_FOR_EACH_LEVEL(HR_TABLE_AT, Table, name)
#define HR_TABLE_AT(level, Table, name) \
    namespace level {                   \
    extern const Table name;            \
    }

// table_of(Level): the one of a level. For bind.cpp, and not for kernel.h: an inline function there would be
// compiled for every level, and the linker keeps any of them.
#define HR_TABLE_OF(Table, name)                                     \
    const Table& table_of(Level level) {                             \
        switch (level) { HR_FOR_EACH_LEVEL(HR_TABLE_CASE, name) }    \
        fail_internal("no such level: %d", static_cast<int>(level)); \
    }
#define HR_TABLE_CASE(level, name) \
    case Level::level:             \
        return level::name;
