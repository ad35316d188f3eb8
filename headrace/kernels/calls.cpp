#include "headrace/calls.h"

#include <chrono>
#include <map>
#include <string_view>

namespace nb = nanobind;

namespace headrace {

void Calls::play() const {
    // Let go of once, not per call: a call takes microseconds, and getting the lock back may take
    // milliseconds.
    const nb::gil_scoped_release unlocked;
    for (const Call& call : calls_) call.run();
}

nb::dict Calls::time() const {
    using Clock = std::chrono::steady_clock;
    struct Spent {
        int calls = 0;
        std::chrono::duration<double> seconds{0};
    };
    std::map<std::string_view, Spent> by_name;
    {
        const nb::gil_scoped_release unlocked;
        for (const Call& call : calls_) {
            Spent& spent = by_name[call.name];
            const Clock::time_point begin = Clock::now();
            call.run();
            spent.seconds += Clock::now() - begin;
            ++spent.calls;
        }
    }
    nb::dict spent;
    for (const auto& [name, of] : by_name)
        spent[nb::str(name.data(), name.size())] = nb::make_tuple(of.calls, of.seconds.count());
    return spent;
}

void bind_calls(nb::module_& m) {
    nb::class_<Calls>(m, "Calls")
        .def(nb::init<>())
        .def("add", [](Calls& calls, const Calls& more) { calls.add(Calls(more)); })
        .def("__len__", &Calls::size)
        .def("__call__", &Calls::play)
        .def("time", &Calls::time);
}

}  // namespace headrace
