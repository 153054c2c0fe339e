// The arguments and results of the operators `gru` and `gru_backward`, as tensors. gru/gru.cpp checks the arguments and
// allocates the results. gru/cuda.cpp computes the results on a GPU.
#pragma once

#include <optional>
#include <string_view>

#include "common/huge_pages.h"
#include "common/operator.h"
#include "gru/gru.h"

namespace grf {

// The arguments that `gru` and `gru_backward` share, checked and contiguous. A tensor is undefined if its argument is
// None.
struct GruArguments {
  at::Device device;
  int64_t steps, lanes, hidden;
  bool reset_after;
  at::Tensor state, weight, bias, reset, mask;

  // T is read from the shape of `gates` [T, B, n_gates * H]: gate_inputs [T, B, 3H] in `gru`, `saved` [T, B, 4H] in
  // `gru_backward`. `form` is "reset_after" or "reset_before".
  GruArguments(const at::Tensor& gates, int64_t n_gates, const at::Tensor& state, const at::Tensor& weight_hh,
               const std::optional<at::Tensor>& bias_hh, const std::optional<at::Tensor>& reset,
               const std::optional<at::Tensor>& output_mask, std::string_view form);

  // Checks a tensor [T, B, factor * H] and returns it as a contiguous tensor.
  at::Tensor sequence(const at::Tensor& tensor, const char* name, int64_t factor) const {
    return contiguous(tensor, name, {steps, lanes, factor * hidden}, state.scalar_type(), device);
  }
  at::Tensor empty(at::IntArrayRef shape) const { return empty_in_huge_pages(shape, state.options()); }
  template <typename T>
  GruLayer<T> layer() const {
    return {steps,
            lanes,
            hidden,
            reset_after,
            state.const_data_ptr<T>(),
            weight.const_data_ptr<T>(),
            data_or_null<T>(bias),
            data_or_null<bool>(reset),
            data_or_null<T>(mask)};
  }
};

// The results of `gru_backward`: the gradients of the arguments with these names. `state` is undefined if the caller
// does not need it.
struct GruGradients {
  at::Tensor gate_inputs, state, weight, bias;
};

namespace cuda {

// Compute all elements of `output` and `saved`, or of `grads`, on the current stream of args.device. T, B and H are
// positive.
void gru_forward(const GruArguments& args, const at::Tensor& gate_inputs, at::Tensor& output, at::Tensor& saved);
void gru_backward(const GruArguments& args, const at::Tensor& grad_output, const at::Tensor& output,
                  const at::Tensor& saved, GruGradients& grads);

}  // namespace cuda
}  // namespace grf
