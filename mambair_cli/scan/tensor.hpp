// Tensors of torch as arguments, asked for their address and shape by name. The general protocol (DLPack) takes ten times
// as long, in all as long as a small network computes.
#pragma once
#include <nanobind/nanobind.h>

#include <cstdint>
#include <optional>

// A tensor in the memory of the processor. What it holds belongs to Python, which keeps it during a call.
struct Strided {
  static constexpr bool DENSE = false;
  void* address;
  int64_t sizes[8];
  int count, item;  // dimensions, bytes of a value

  void* data() const { return address; }
  int ndim() const { return count; }
  int64_t shape(int i) const { return sizes[i]; }
};

struct Array : Strided {  // contiguous
  static constexpr bool DENSE = true;
};

using Maybe = std::optional<Array>;

template <class T>
T* pointer(const Maybe& a) {
  return a ? (T*)a->data() : nullptr;
}

namespace tensor {

// What `object.name` or `object.name()` is; null, with no error set, where there is none.
inline PyObject* ask(PyObject* object, PyObject* name, bool call) {
  PyObject* answer = call ? PyObject_CallMethodObjArgs(object, name, nullptr) : PyObject_GetAttr(object, name);
  if (!answer) PyErr_Clear();
  return answer;
}

inline bool yes(PyObject* object, PyObject* name, bool call) {
  PyObject* answer = ask(object, name, call);
  Py_XDECREF(answer);
  return answer == Py_True;
}

inline bool read(PyObject* object, Strided& to, bool dense) {
  static PyObject *const cpu = PyUnicode_InternFromString("is_cpu"), *const whole = PyUnicode_InternFromString("is_contiguous"),
                  *const shape = PyUnicode_InternFromString("shape"), *const item = PyUnicode_InternFromString("itemsize"),
                  *const address = PyUnicode_InternFromString("data_ptr");
  if (!yes(object, cpu, false) || (dense && !yes(object, whole, true))) return false;
  PyObject *sizes = ask(object, shape, false), *bytes = ask(object, item, false), *at = ask(object, address, true);
  const bool known = sizes && bytes && at && PyTuple_Check(sizes) && PyTuple_Size(sizes) <= 8;
  if (known) {
    to.count = int(PyTuple_Size(sizes));
    for (int i = 0; i < to.count; i++) to.sizes[i] = PyLong_AsLongLong(PyTuple_GetItem(sizes, i));
    to.item = int(PyLong_AsLong(bytes));
    to.address = PyLong_AsVoidPtr(at);
  }
  Py_XDECREF(sizes);
  Py_XDECREF(bytes);
  Py_XDECREF(at);
  return known;
}

}  // namespace tensor

namespace nanobind::detail {

template <class T>
struct tensor_caster {
  NB_TYPE_CASTER(T, const_name("torch.Tensor"))
  bool from_python(handle source, uint8_t, cleanup_list*) noexcept { return tensor::read(source.ptr(), value, T::DENSE); }
};
template <>
struct type_caster<Strided> : tensor_caster<Strided> {};
template <>
struct type_caster<Array> : tensor_caster<Array> {};

}  // namespace nanobind::detail
