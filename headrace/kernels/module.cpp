// The native module: one submodule per instruction-set level, each with the same operations.
//
//   _native.levels             names compiled in, lowest first
//   _native.supported()        the ones this processor runs
//   _native.threads(), _native.set_threads(n)   the pool's size; 0: one per core
//   _native.avx2.rms_norm(...) an operation at a level; calling one that is not supported is an illegal
//   instruction
//   _native.avx2.calls.rms_norm(...)   the same as Calls, to make again and again (headrace/calls.h)
#include <nanobind/nanobind.h>

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <cstdarg>
#include <cstdio>
#include <stdexcept>

#include "headrace/calls.h"
#include "headrace/check.h"
#include "headrace/level.h"
#include "headrace/pool.h"

namespace nb = nanobind;

namespace headrace {

#define X(operation) void bind_##operation(nb::module_& m, Level level);
HR_FOR_EACH_OPERATION(X)
#undef X

namespace {

#if defined(__x86_64__) && !defined(HR_EMULATED)
// AMX for integers and bfloat16, and the kernel's leave to use it. The leave is asked for here, once and for
// all threads: eight kilobytes more to save per thread is why a process must ask.
bool has_tiles() {
#if defined(__linux__)
    unsigned a, b, c, d;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
    constexpr unsigned kWanted = 1u << 22 | 1u << 24 | 1u << 25;  // bfloat16, tiles, 8-bit integers
    constexpr int kRequest = 0x1023, kTileData = 18;
    return (d & kWanted) == kWanted && syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
#else
    return false;
#endif
}
#endif

bool supported(Level level) {
    switch (level) {
        case Level::generic:
            return true;
#if defined(__x86_64__)
        // Each of these also asks whether the operating system saves the registers. Every processor with AVX2
        // has F16C.
        case Level::avx2:
            return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                   __builtin_cpu_supports("bmi2");
#if defined(HR_EMULATED)
        default:  // of tests/kernels/emulated, compiled for AVX2
            return supported(Level::avx2);
#else
        case Level::avx512:
            return supported(Level::avx2) && __builtin_cpu_supports("avx512f") &&
                   __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512bw") &&
                   __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                   __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bf16") &&
                   __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vbmi2");
        default:
            return supported(Level::avx512) && has_tiles();
#endif
#endif
    }
    return false;
}

nb::tuple level_names(bool only_supported) {
    nb::list names;
#define X(name) \
    if (!only_supported || supported(Level::name)) names.append(#name);
    HR_FOR_EACH_LEVEL(X)
#undef X
    return nb::tuple(names);
}

template <class Error>
[[noreturn]] void fail(const char* format, va_list arguments) {
    char message[512];
    vsnprintf(message, sizeof message, format, arguments);
    throw Error(message);
}

}  // namespace

void fail_user(const char* format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fail<std::invalid_argument>(format, arguments);  // becomes ValueError
}

void fail_internal(const char* format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fail<std::logic_error>(format, arguments);  // becomes RuntimeError
}

}  // namespace headrace

NB_MODULE(_native, m) {
    using namespace headrace;
    m.attr("levels") = level_names(false);
    m.def("supported", [] { return level_names(true); });
    m.def("threads", threads);
    m.def("set_threads", set_threads);
    bind_calls(m);
    nb::set_leak_warnings(
        false);  // an engine in a daemon thread outlives the interpreter, and that is no leak

    auto bind_all = [](nb::module_ submodule, Level level) {
        submodule.def_submodule("calls");
#define X(operation) bind_##operation(submodule, level);
        HR_FOR_EACH_OPERATION(X)
#undef X
    };
#define X(name) bind_all(m.def_submodule(#name), Level::name);
    HR_FOR_EACH_LEVEL(X)
#undef X
}
