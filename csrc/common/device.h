// What the ATen side of the CUDA kernels (cuda/<k>.cpp) needs of the device. c10/cuda only: ATen/cuda wants headers of
// libraries that a machine without a GPU lacks. Compiled for the emulation, the device is the CPU.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <optional>

#include "common/library.h"

#ifdef GRF_EMULATED

#include "common/stream.h"
#define GRF_DEVICE_IMPL(m) GRF_TORCH_LIBRARY_IMPL(GRF_LIBRARY, CPU, m)

namespace grf {

struct DeviceGuard {
  explicit DeviceGuard(const at::Device&) {}
};
inline cudaStream_t current_stream(const at::Device&) {
  return nullptr;
}
inline bool runs_on(const at::Device& device) {
  return device.is_cpu();
}

}  // namespace grf

#else

#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#define GRF_DEVICE_IMPL(m) GRF_TORCH_LIBRARY_IMPL(GRF_LIBRARY, CUDA, m)

namespace grf {

using DeviceGuard = c10::cuda::CUDAGuard;
inline cudaStream_t current_stream(const at::Device& device) {
  return c10::cuda::getCurrentCUDAStream(device.index()).stream();
}
inline bool runs_on(const at::Device& device) {
  return device.is_cuda();
}

}  // namespace grf

#endif

namespace grf {

inline const char* dtype_name(at::ScalarType dtype) {
  switch (dtype) {
    case at::kLong:
      return "int64";
    case at::kInt:
      return "int32";
    case at::kBool:
      return "bool";
    case at::kFloat:
      return "float32";
    case at::kDouble:
      return "float64";
    case at::kBFloat16:
      return "bfloat16";
    default:
      return c10::toString(dtype);
  }
}

// A tensor argument as contiguous memory (a copy where it is not) on `device`. ValueError names it where it is not
// there or not of the shape and dtype that the operator needs.
inline at::Tensor contiguous_on(const at::Device& device, const at::Tensor& tensor, const char* name,
                                at::IntArrayRef shape, at::ScalarType dtype) {
  TORCH_CHECK_VALUE(tensor.sizes() == shape && tensor.scalar_type() == dtype, name, " must be ", dtype_name(dtype), " ",
                    shape, ", not ", dtype_name(tensor.scalar_type()), " ", tensor.sizes());
  TORCH_CHECK_VALUE(tensor.device() == device, name, " is on ", tensor.device(), ", not on ", device);
  return tensor.contiguous();
}

// The same of an optional argument; undefined where there is none.
inline at::Tensor contiguous_on(const at::Device& device, const std::optional<at::Tensor>& tensor, const char* name,
                                at::IntArrayRef shape, at::ScalarType dtype) {
  return tensor.has_value() ? contiguous_on(device, *tensor, name, shape, dtype) : at::Tensor();
}

// The numbers of a tensor, or null where it is undefined.
template <typename T>
const T* data_or_null(const at::Tensor& tensor) {
  return tensor.defined() ? tensor.const_data_ptr<T>() : nullptr;
}

inline void check_float_or_double(const char* op, at::ScalarType dtype) {
  TORCH_CHECK_VALUE(dtype == at::kFloat || dtype == at::kDouble, op,
                    ": the CUDA kernel takes float32 and float64, not ", dtype,
                    "; convert, or pass impl=\"reference\"");
}

}  // namespace grf
