// A tensor handed over from Python: pointer, dtype, shape, strides. Nothing is copied.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <cstdint>

#include "headrace/bf16.h"

namespace headrace {

enum class DType { f32, bf16, f16, u8, i8, i32, i64, other };

// Valid as long as the Python object is: keep it to the body of a bound function.
//
// A tensor type that offers DLPack's C exchange table (PyTorch since 2.10) is read through it in well under
// 100 ns; any other through __dlpack__, which takes microseconds.
class Array {
  public:
    // `name` is how errors call it. Raises what the exporter raises (a tensor that requires grad cannot be
    // exported) and ValueError for an object that is no tensor in main memory.
    Array(nanobind::handle object, const char* name);

    const char* name() const { return name_; }
    DType dtype() const;
    int dims() const { return tensor_.ndim; }
    int64_t size(int dim) const { return tensor_.shape[dim]; }
    int64_t size() const;
    bool contiguous() const { return contiguous_from(0); }
    // The same but for the first axis: rows may lie apart.
    bool inner_contiguous() const { return contiguous_from(1); }
    int64_t stride(int dim) const;
    // Elements from one row to the next of a matrix whose rows are contiguous; -1 if they are not.
    int64_t row_stride() const;

    template <class T>
    T* data() const {
        return reinterpret_cast<T*>(static_cast<char*>(tensor_.data) + tensor_.byte_offset);
    }

  private:
    bool contiguous_from(int first) const;

    const char* name_;
    nanobind::dlpack::dltensor tensor_;
    nanobind::ndarray<> owner_;  // set on the slow way only
};

}  // namespace headrace
