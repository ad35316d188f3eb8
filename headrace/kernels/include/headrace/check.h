// Three grades of check: who is at fault decides which one.
//
//   HR_CHECK(condition, format, ...)    the caller passed something wrong    -> ValueError, always on
//   HR_ICHECK(condition, format, ...)   an invariant of ours is broken       -> RuntimeError, always on
//   HR_DCHECK(condition)                the same, in an inner loop           -> debug builds only
//
// The message is printf-style and says what was passed, not only what was wanted. The failing path is a call
// to a function compiled without instruction-set flags, so kernels may use these checks (see simd.h).
#pragma once

namespace headrace {

[[noreturn, gnu::cold, gnu::format(printf, 1, 2)]] void fail_user(const char* format, ...);
[[noreturn, gnu::cold, gnu::format(printf, 1, 2)]] void fail_internal(const char* format, ...);

}  // namespace headrace

#define HR_CHECK(condition, ...) ((condition) ? void() : ::headrace::fail_user(__VA_ARGS__))
#define HR_ICHECK(condition, ...) ((condition) ? void() : ::headrace::fail_internal(__VA_ARGS__))
#ifdef NDEBUG
#define HR_DCHECK(condition) void(sizeof(!(condition)))
#else
#define HR_DCHECK(condition) HR_ICHECK(condition, "%s:%d: %s", __FILE__, __LINE__, #condition)
#endif
