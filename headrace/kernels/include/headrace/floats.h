// Numbers in one of the dtypes that checkpoints have.
#pragma once

#include "headrace/bf16.h"
#include "headrace/f16.h"

namespace headrace {

enum class FloatType { f32, bf16, f16 };

struct Floats {
    const void* data;
    FloatType type;
};

}  // namespace headrace

#ifdef HR_LEVEL
namespace headrace::HR_LEVEL {

// function(pointer to the numbers as what they are)
template <class Function>
inline auto with_type(const Floats& x, const Function& function) {
    switch (x.type) {
        case FloatType::f32:
            return function(static_cast<const float*>(x.data));
        case FloatType::bf16:
            return function(static_cast<const bf16*>(x.data));
        default:
            return function(static_cast<const f16*>(x.data));
    }
}

}  // namespace headrace::HR_LEVEL
#endif
