#include "headrace/array.h"

#include "headrace/check.h"

namespace nb = nanobind;

namespace headrace {
namespace {

// The leading part of DLPack's DLPackExchangeAPI (dlpack.h, version 1.3), with the one function that is used
// here.
struct ExchangeTable {
    uint32_t major, minor;
    ExchangeTable* previous;
    void* unused[3];
    int (*view)(void* object, nb::dlpack::dltensor* out);  // borrows shape and strides; 0 on success
};

const ExchangeTable* read_table(PyTypeObject* type) {
    nb::object capsule = nb::getattr(nb::handle((PyObject*)type), "__dlpack_c_exchange_api__", nb::none());
    if (capsule.is_none()) return nullptr;
    auto* table =
        static_cast<const ExchangeTable*>(PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
    if (!table) PyErr_Clear();
    return table && table->major == 1 && table->view ? table : nullptr;
}

// The answer for the few types seen (a tensor, a parameter). They are kept alive, so that an address means
// one type.
const ExchangeTable* find_table(PyTypeObject* type) {
    struct Seen {
        PyTypeObject* type;
        const ExchangeTable* table;
    };
    static thread_local Seen seen[4] = {};
    for (Seen& entry : seen) {
        if (entry.type == type) return entry.table;
        if (entry.type) continue;
        entry = {type, read_table(type)};
        Py_INCREF(type);
        return entry.table;
    }
    return read_table(type);
}

}  // namespace

Array::Array(nb::handle object, const char* name) : name_(name) {
    if (const ExchangeTable* table = find_table(Py_TYPE(object.ptr()))) {
        if (table->view(object.ptr(), &tensor_) != 0) throw nb::python_error();
    } else {
        HR_CHECK(nb::try_cast(object, owner_), "%s is a %s, not a tensor that can be shared through DLPack",
                 name, Py_TYPE(object.ptr())->tp_name);
        tensor_.data = owner_.data();  // byte_offset is in it, and stays 0 in tensor_
        tensor_.device = {owner_.device_type(), owner_.device_id()};
        tensor_.ndim = static_cast<int32_t>(owner_.ndim());
        tensor_.dtype = owner_.dtype();
        tensor_.shape = const_cast<int64_t*>(owner_.shape_ptr());
        tensor_.strides = const_cast<int64_t*>(owner_.stride_ptr());
    }
    HR_CHECK(tensor_.device.device_type == nb::device::cpu::value, "%s is not in main memory", name);
}

DType Array::dtype() const {
    if (tensor_.dtype == nb::dtype<float>()) return DType::f32;
    using Code = nb::dlpack::dtype_code;
    struct Known {
        Code code;
        uint8_t bits;
        DType dtype;
    };
    static constexpr Known known[] = {{Code::Bfloat, 16, DType::bf16}, {Code::Float, 16, DType::f16},
                                      {Code::UInt, 8, DType::u8},      {Code::Int, 8, DType::i8},
                                      {Code::Int, 32, DType::i32},     {Code::Int, 64, DType::i64}};
    for (const Known& one : known)
        if (tensor_.dtype == nb::dlpack::dtype{static_cast<uint8_t>(one.code), one.bits, 1}) return one.dtype;
    return DType::other;
}

int64_t Array::size() const {
    int64_t count = 1;
    for (int dim = 0; dim < dims(); ++dim) count *= size(dim);
    return count;
}

bool Array::contiguous_from(int first) const {
    if (!tensor_.strides) return true;
    int64_t expected = 1;
    for (int dim = dims() - 1; dim >= first; --dim) {
        if (size(dim) == 0) return true;
        if (size(dim) != 1 && tensor_.strides[dim] != expected) return false;
        expected *= size(dim);
    }
    return true;
}

int64_t Array::stride(int dim) const {
    if (tensor_.strides) return tensor_.strides[dim];
    int64_t step = 1;
    for (int inner = dims() - 1; inner > dim; --inner) step *= size(inner);
    return step;
}

int64_t Array::row_stride() const {
    if (dims() != 2) return -1;
    if (!tensor_.strides) return size(1);
    return size(1) <= 1 || tensor_.strides[1] == 1 ? tensor_.strides[0] : -1;
}

}  // namespace headrace
