// What operators ask of the tensors they are given before they take raw pointers.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

namespace grf {

// A tensor argument as contiguous memory (a copy where it is not), of the shape and dtype that the operator needs.
// ValueError names it otherwise.
inline at::Tensor contiguous(const at::Tensor& tensor, const char* name, at::IntArrayRef shape, at::ScalarType dtype) {
  TORCH_CHECK_VALUE(tensor.sizes() == shape, name, " must be ", shape, ", not ", tensor.sizes());
  TORCH_CHECK_VALUE(tensor.scalar_type() == dtype, name, " is ", tensor.scalar_type(), ", not ", dtype);
  TORCH_CHECK_VALUE(tensor.device().is_cpu(), name, " is on ", tensor.device(), ", not on the CPU");
  return tensor.contiguous();
}

// The same of an optional argument; undefined where there is none.
inline at::Tensor contiguous(const std::optional<at::Tensor>& tensor, const char* name, at::IntArrayRef shape,
                             at::ScalarType dtype) {
  return tensor.has_value() ? contiguous(*tensor, name, shape, dtype) : at::Tensor();
}

// The numbers of a tensor, or null where it is undefined.
template <typename T>
const T* data_or_null(const at::Tensor& tensor) {
  return tensor.defined() ? tensor.const_data_ptr<T>() : nullptr;
}

inline void check_kernel_dtype(const char* op, at::ScalarType dtype) {
  TORCH_CHECK_VALUE(dtype == at::kFloat || dtype == at::kDouble, op, ": the CPU kernel takes float32 and float64, not ",
                    dtype, "; convert, or pass impl=\"reference\"");
}

}  // namespace grf
