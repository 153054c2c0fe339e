// Registration of operators and checks of their tensor arguments. A family is a folder of operators, such as gru. Its
// file <family>/<family>.cpp includes this header: it checks arguments and allocates results for both devices, then
// calls the functions of <family>/cpu.cpp or <family>/cuda.cpp.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <optional>

#include "common/checks.h"
#include "common/library.h"

namespace grf {

// Selects which functions of a family an operator calls.
enum class Kernels { cpu, cuda };

// GRF_CUDA_IMPL(m) { ... } registers operators that have only CUDA kernels.
// GRF_EACH_KERNELS(X) expands to X(Kernels::cpu) and X(Kernels::cuda), without the kernels that this library lacks.
// GRF_REGISTER(name) registers the function template name<kernels> as the operator `name`, for each value of `kernels`
// that GRF_EACH_KERNELS lists.
// GRF_REGISTER_CPU(name) registers a function as an operator that runs on the CPU only.
// In the emulation, CUDA kernels run on CPU tensors and are registered for the CPU.
#if defined(GRF_EMULATED)
#define GRF_CUDA_IMPL(m) GRF_TORCH_LIBRARY_IMPL(GRF_LIBRARY, CPU, m)
#define GRF_EACH_KERNELS(X) X(Kernels::cuda)
#define GRF_REGISTER(name) GRF_REGISTER_FUNCTION(CPU, name, name<Kernels::cuda>)
#define GRF_REGISTER_CPU(name)
#elif defined(GRF_WITH_CUDA)
#define GRF_CUDA_IMPL(m) GRF_TORCH_LIBRARY_IMPL(GRF_LIBRARY, CUDA, m)
#define GRF_EACH_KERNELS(X) X(Kernels::cpu) X(Kernels::cuda)
#define GRF_REGISTER(name)                             \
  GRF_REGISTER_FUNCTION(CPU, name, name<Kernels::cpu>) \
  GRF_REGISTER_FUNCTION(CUDA, name, name<Kernels::cuda>)
#define GRF_REGISTER_CPU(name) GRF_REGISTER_FUNCTION(CPU, name, name)
#else
#define GRF_EACH_KERNELS(X) X(Kernels::cpu)
#define GRF_REGISTER(name) GRF_REGISTER_FUNCTION(CPU, name, name<Kernels::cpu>)
#define GRF_REGISTER_CPU(name) GRF_REGISTER_FUNCTION(CPU, name, name)
#endif
#define GRF_REGISTER_FUNCTION(device, name, function) \
  GRF_TORCH_LIBRARY_IMPL(GRF_LIBRARY, device, m) {    \
    m.impl(#name, &function);                         \
  }

// Returns a tensor argument, copied if it is not contiguous. Raises ValueError if the tensor does not have the given
// shape, dtype and device.
inline at::Tensor contiguous(const at::Tensor& tensor, const char* name, at::IntArrayRef shape, at::ScalarType dtype,
                             const at::Device& device = at::kCPU) {
  TORCH_CHECK_VALUE(tensor.sizes() == shape, name, " must be ", shape, ", not ", tensor.sizes());
  TORCH_CHECK_VALUE(tensor.scalar_type() == dtype, name, " is ", tensor.scalar_type(), ", not ", dtype);
  TORCH_CHECK_VALUE(tensor.device() == device, name, " is on ", tensor.device(), ", not on ", device);
  return tensor.contiguous();
}

// The same for an optional argument. Returns an undefined tensor if the argument is None.
inline at::Tensor contiguous(const std::optional<at::Tensor>& tensor, const char* name, at::IntArrayRef shape,
                             at::ScalarType dtype, const at::Device& device = at::kCPU) {
  return tensor.has_value() ? contiguous(*tensor, name, shape, dtype, device) : at::Tensor();
}

// The number of an operator's first step is `number` plus *counter. `counter` is null or points to GPU memory.
struct FirstStep {
  int64_t number;
  const int64_t* counter;
};

// Returns the number of an operator's first step from the arguments `step` and `counter`. The caller has checked
// `step`. On the CPU this function reads and checks the counter; on CUDA the kernels do so, because reading it here
// would synchronize.
template <Kernels kernels>
FirstStep first_step(int64_t step, const std::optional<at::Tensor>& counter, int64_t steps, const at::Device& device) {
  if (!counter.has_value()) return {step, nullptr};
  const auto* value = contiguous(*counter, "step", {}, at::kLong, device).const_data_ptr<int64_t>();
  if constexpr (kernels == Kernels::cuda) return {step, value};
  check_counter(*value, step, steps);
  return {step + *value, nullptr};
}

// Returns the data pointer of a tensor, or null if the tensor is undefined.
template <typename T>
const T* data_or_null(const at::Tensor& tensor) {
  return tensor.defined() ? tensor.const_data_ptr<T>() : nullptr;
}
template <typename T>
T* mutable_data_or_null(const at::Tensor& tensor) {
  return tensor.defined() ? tensor.mutable_data_ptr<T>() : nullptr;
}

// Raises ValueError if an operator that has kernels for float32 and float64 only is called with another dtype.
inline void check_kernel_dtype(const char* op, at::ScalarType dtype) {
  TORCH_CHECK_VALUE(dtype == at::kFloat || dtype == at::kDouble, op, ": the kernel takes float32 and float64, not ",
                    dtype, "; convert, or pass impl=\"reference\"");
}

}  // namespace grf
