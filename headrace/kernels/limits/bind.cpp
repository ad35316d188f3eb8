// limits: checks the arguments and calls the loops of one level.
#include <nanobind/nanobind.h>

#include "headrace/array.h"
#include "headrace/check.h"
#include "limits/kernel.h"

namespace nb = nanobind;

namespace headrace {
namespace {

HR_TABLE_OF(LimitsTable, limits)

Array bytes_of(nb::handle object) {
    Array data(object, "data");
    HR_CHECK(data.dtype() == DType::u8 && data.contiguous(), "data must be contiguous uint8");
    return data;
}

// Out of every cache: what is timed next reads it from memory. Nothing where no instruction does that.
void forget([[maybe_unused]] const uint8_t* data, [[maybe_unused]] int64_t size) {
#if defined(__x86_64__)
    constexpr int64_t kLine = 64;
    for (int64_t i = 0; i < size; i += kLine) __builtin_ia32_clflush(data + i);
    __builtin_ia32_mfence();
#endif
}

void bind_arithmetic(nb::module_& m, const char* name, Arithmetic run) {
    if (!run) return;
    m.def(name, [run](int64_t pieces, int64_t rounds) {
        constexpr int64_t kMost = 1 << 30;
        HR_CHECK(pieces > 0 && pieces <= kMost && rounds > 0 && rounds <= kMost / pieces,
                 "pieces and rounds must be positive, and their product at most 2^30");
        return run(pieces, rounds);
    });
}

}  // namespace

void bind_limits(nb::module_& m, Level level) {
    const LimitsTable& table = table_of(level);
    m.def("limits_fill", [&table](nb::handle object, int byte) {
        const Array data = bytes_of(object);
        table.fill(data.data<uint8_t>(), data.size(), byte);
    });
    m.def("limits_read", [&table](nb::handle object) {
        const Array data = bytes_of(object);
        table.read(data.data<const uint8_t>(), data.size());
    });
    m.def("limits_forget", [](nb::handle object) {
        const Array data = bytes_of(object);
        forget(data.data<const uint8_t>(), data.size());
    });
    bind_arithmetic(m, "limits_int8", table.int8);
    bind_arithmetic(m, "limits_float32", table.float32);
    bind_arithmetic(m, "limits_bf16", table.bf16);
}

}  // namespace headrace
