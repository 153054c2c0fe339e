// A parameter of a network with its Adagrad state: as tensors that Python owns (Parameter), and as raw pointers with a
// gradient (DenseParameter).
#pragma once

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <cstdint>

#include "common/scratch.h"
#include "sparse_update/cpu.h"

namespace grf {

// `velocity` is undefined without momentum. All three tensors are undefined if the network lacks the parameter.
struct Parameter {
  at::Tensor weight, accumulator, velocity;

  bool defined() const { return weight.defined(); }

  // Returns pointers to the tensors. Throws a ValueError that names the parameter if a tensor cannot be updated in
  // place.
  template <typename T>
  RowTable<T> rows(const char* name) const {
    for (const at::Tensor* tensor : {&weight, &accumulator, &velocity}) {
      if (tensor == &velocity && !velocity.defined()) continue;
      TORCH_CHECK_VALUE(tensor->defined() && tensor->device().is_cpu() && tensor->is_contiguous(), name,
                        ": needs an accumulator, and all tensors of the parameter must be contiguous and on the CPU");
      TORCH_CHECK_VALUE(tensor->scalar_type() == c10::CppTypeToScalarType<T>::value, name, " is ",
                        tensor->scalar_type(), ", not ", c10::CppTypeToScalarType<T>::value);
      TORCH_CHECK_VALUE(tensor->sizes() == weight.sizes(), name, ": the optimizer state is ", tensor->sizes(), ", not ",
                        weight.sizes());
    }
    const int64_t n_rows = weight.size(0);
    return {weight.mutable_data_ptr<T>(), accumulator.mutable_data_ptr<T>(),
            velocity.defined() ? velocity.mutable_data_ptr<T>() : nullptr, n_rows, weight.numel() / n_rows};
  }
};

// A parameter with its dense gradient, for updates of all elements.
template <typename T>
class DenseParameter {
 public:
  DenseParameter() = default;
  DenseParameter(const Parameter& parameter, const char* name) {
    if (parameter.defined()) table_ = parameter.rows<T>(name);
  }

  bool defined() const { return table_.weight != nullptr; }
  const T* weight() const { return table_.weight; }
  int64_t size() const { return table_.n_rows * table_.width; }
  T* grad() { return grad_.reserve(size()); }

  void release_grad() { release(grad_); }

  // Returns the memory of the gradient, for callers that add to it. Sets it to zeros first, unless `add` is true.
  T* start_grad(bool add) {
    if (!add) std::fill_n(grad(), size(), T{0});
    return grad();
  }

  void scale_grad(T factor) {
    if (!defined()) return;
    for (int64_t i = 0; i < size(); ++i) grad()[i] *= factor;
  }

  // Updates rows [first, first + count) by the given gradient [count, width]; does not use or change grad(). May be
  // called in parallel regions.
  void update_rows(int64_t first, int64_t count, const T* grad, const AdagradOptions<T>& options) {
    for (int64_t i = 0; i < count; ++i) {
      const int64_t row = first + i, next_row = i + 1 < count ? row + 1 : -1;  // next_row is prefetched; -1 means none
      // The row has one gradient. `grad`, `positions` and n are for callers that have several.
      update_row<T, AdagradOptions>(table_, row, /*first_grad=*/grad + i * table_.width, /*grad=*/nullptr,
                                    /*positions=*/nullptr, /*n=*/0, options, next_row);
    }
  }

  // Updates all rows by grad().
  void update(const AdagradOptions<T>& options) {
    if (defined()) update_all(table_, grad(), options);
  }

 private:
  RowTable<T> table_{};
  Buffer<T> grad_;
};

}  // namespace grf
