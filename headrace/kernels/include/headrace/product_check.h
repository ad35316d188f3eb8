// Arguments of a product, as Python hands them over. Raises ValueError where they do not fit.
#pragma once

#include <nanobind/nanobind.h>

#include "headrace/array.h"
#include "headrace/check.h"
#include "headrace/floats.h"
#include "headrace/product.h"

namespace headrace {

// None, or a contiguous array of `count` values.
template <class T>
const T* optional(nanobind::handle object, const char* name, DType dtype, int64_t count) {
    if (object.is_none()) return nullptr;
    const Array array(object, name);
    HR_CHECK(array.dtype() == dtype && array.contiguous() && array.size() == count,
             "%s must be contiguous, with %lld values of the right dtype", name,
             static_cast<long long>(count));
    return array.data<const T>();
}

// A matrix of weights, as a checkpoint has it.
inline Floats check_floats(const Array& x) {
    const DType dtype = x.dtype();
    HR_CHECK(x.dims() == 2 && x.contiguous(), "%s must be contiguous [O, I]", x.name());
    HR_CHECK(dtype == DType::f32 || dtype == DType::bf16 || dtype == DType::f16,
             "%s must be float32, bfloat16 or float16", x.name());
    return {x.data<const void>(), dtype == DType::f32    ? FloatType::f32
                                  : dtype == DType::bf16 ? FloatType::bf16
                                                         : FloatType::f16};
}

inline void check_size(int64_t outputs, int64_t width) {
    HR_CHECK(outputs > 0 && width > 0, "a weight of %lld x %lld", static_cast<long long>(outputs),
             static_cast<long long>(width));
}

// What `group` inputs are at a width, which scales are shared by. Whole chunks, or all of them.
inline int64_t check_group(int64_t group, int64_t width, int64_t chunk) {
    HR_CHECK(group >= width || (group > 0 && group % chunk == 0),
             "groups of %lld inputs: a multiple of %lld is needed", static_cast<long long>(group),
             static_cast<long long>(chunk));
    return group < width ? group : width;
}

// The bytes of a shape that knows how many blocks it has, and of how many bytes.
template <class Shape>
const uint8_t* check_packed(const Array& packed, const Shape& shape) {
    const int64_t wanted = shape.blocks() * shape.block_bytes();
    HR_CHECK(packed.dtype() == DType::u8 && packed.contiguous() && packed.size() == wanted,
             "packed has %lld bytes, this shape needs %lld", static_cast<long long>(packed.size()),
             static_cast<long long>(wanted));
    return packed.data<const uint8_t>();
}

inline RowSource check_rows(const Array& x, int64_t width, int before, nanobind::handle norm, float eps,
                            float offset) {
    HR_CHECK(before >= 0 && before <= static_cast<int>(Before::gelu_gate), "before=%d is unknown", before);
    const Before what{before};
    const bool gate = what == Before::silu_gate || what == Before::gelu_gate;
    HR_CHECK(x.dtype() == DType::f32 && x.dims() == 2 && x.row_stride() >= 0,
             "x must be float32 with contiguous rows");
    HR_CHECK(x.size(1) == width * (gate ? 2 : 1), "rows of x have %lld values, the weight takes %lld",
             static_cast<long long>(x.size(1)), static_cast<long long>(width * (gate ? 2 : 1)));
    const float* weight = optional<float>(norm, "norm", DType::f32, width);
    HR_CHECK((weight != nullptr) == (what == Before::rms_norm), "a norm's weight belongs to before=rms_norm");
    return {x.data<const float>(), x.row_stride(), what, weight, eps, offset};
}

inline ProductEnd check_end(nanobind::handle out_object, nanobind::handle bias, nanobind::handle add,
                            int64_t rows, int64_t outputs) {
    const Array out(out_object, "out");
    HR_CHECK(out.dtype() == DType::f32 && out.contiguous() && out.size() == rows * outputs,
             "out must be float32 [%lld, %lld]", static_cast<long long>(rows),
             static_cast<long long>(outputs));
    return {outputs, optional<float>(bias, "bias", DType::f32, outputs),
            optional<float>(add, "add", DType::f32, rows * outputs), out.data<float>()};
}

// Outputs of a weight to look up, as rows of an embedding.
struct Lookup {
    const int64_t* ids;  // [count]
    int64_t count, outputs;
    float* out;  // [count, width]

    // Ids lie in memory: they may have changed since the rest was checked.
    void check_ids() const {
        for (int64_t i = 0; i < count; ++i)
            HR_CHECK(ids[i] >= 0 && ids[i] < outputs, "output %lld of %lld", static_cast<long long>(ids[i]),
                     static_cast<long long>(outputs));
    }
};

inline Lookup check_lookup(nanobind::handle ids_object, nanobind::handle out_object, int64_t outputs,
                           int64_t width) {
    const Array ids(ids_object, "ids"), out(out_object, "out");
    HR_CHECK(ids.dtype() == DType::i64 && ids.dims() == 1 && ids.contiguous(), "ids must be int64 [T]");
    HR_CHECK(out.dtype() == DType::f32 && out.contiguous() && out.size() == ids.size() * width,
             "out must be float32 [T, %lld]", static_cast<long long>(width));
    return {ids.data<const int64_t>(), ids.size(), outputs, out.data<float>()};
}

}  // namespace headrace
