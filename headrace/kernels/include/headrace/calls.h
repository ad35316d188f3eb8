// Native calls that can be made again: arguments checked, pointers and shapes bound, no Python left in them.
//
//   def_call(m, "rope", [](nb::handle x, ...) { checks; return [=] { the kernel }; });
//
// binds `m.rope(...)`, which makes the call, and `m.calls.rope(...)`, which returns it as Calls of one. What
// depends on values in memory (a position, a page number) and what a thread owns (scratch) belongs in what is
// returned: it runs each time, without the interpreter lock.
#pragma once

#include <nanobind/nanobind.h>

#include <functional>
#include <type_traits>
#include <utility>
#include <vector>

namespace headrace {

// Made again in order. Holds the objects whose memory the calls use: they must not be resized meanwhile.
class Calls {
  public:
    void add(const char* name, std::function<void()> run, std::vector<nanobind::object> held) {
        calls_.push_back({name, std::move(run), std::move(held)});
    }
    void add(const Calls& more) { calls_.insert(calls_.end(), more.calls_.begin(), more.calls_.end()); }
    size_t size() const { return calls_.size(); }

    // Raises ValueError, as the call itself would; those that follow are not made then.
    void play() const;
    // The same with a clock around each call: {name: (calls, seconds)}.
    nanobind::dict time() const;

  private:
    struct Call {
        const char* name;
        std::function<void()> run;
        std::vector<nanobind::object> held;
    };
    std::vector<Call> calls_;
};

void bind_calls(nanobind::module_& m);

template <class Argument>
void hold(std::vector<nanobind::object>& held, const Argument& argument) {
    if constexpr (std::is_base_of_v<nanobind::handle, Argument>) held.push_back(nanobind::borrow(argument));
}

template <class Check, class Run, class... Arguments, class... Extra>
void def_with(nanobind::module_& m, const char* name, const Check& check, Run (Check::*)(Arguments...) const,
              const Extra&... extra) {
    m.def(name, [check](Arguments... arguments) { check(arguments...)(); }, extra...);
    auto calls = nanobind::cast<nanobind::module_>(m.attr("calls"));
    calls.def(
        name,
        [check, name](Arguments... arguments) {
            std::vector<nanobind::object> held;
            (hold(held, arguments), ...);
            Calls one;
            one.add(name, check(arguments...), std::move(held));
            return one;
        },
        extra...);
}

template <class Check, class... Extra>
void def_call(nanobind::module_& m, const char* name, const Check& check, const Extra&... extra) {
    def_with(m, name, check, &Check::operator(), extra...);
}

}  // namespace headrace
