// The arguments and results of the operators `gru` and `gru_backward`, as tensors. gru/gru.cpp checks and allocates
// them, gru/cuda.cpp computes with them.
#pragma once

#include <ATen/ops/empty.h>

#include <optional>
#include <string_view>

#include "common/operator.h"
#include "gru/gru.h"

namespace grf {

// The arguments that `gru` and `gru_backward` share, checked and contiguous. Optional tensors may be undefined.
struct GruArguments {
  at::Device device;
  int64_t steps, lanes, hidden;
  bool reset_after;
  at::Tensor state, weight, bias, reset, mask;

  // T is the first dimension of `block` [T, B, width * H], which is gate_inputs (width 3) or `saved` (width 4). `form`
  // is "reset_after" or "reset_before".
  GruArguments(const at::Tensor& block, int64_t width, const at::Tensor& state, const at::Tensor& weight_hh,
               const std::optional<at::Tensor>& bias_hh, const std::optional<at::Tensor>& reset,
               const std::optional<at::Tensor>& output_mask, std::string_view form);

  // Checks a tensor [T, B, width * H] and returns it as a contiguous tensor.
  at::Tensor block(const at::Tensor& tensor, const char* name, int64_t width) const {
    return contiguous(tensor, name, {steps, lanes, width * hidden}, state.scalar_type(), device);
  }
  at::Tensor empty(at::IntArrayRef shape) const { return at::empty(shape, state.options()); }
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

// The results of `gru_backward`. `state` is undefined if its gradient is not needed.
struct GruGradients {
  at::Tensor gate_inputs, state, weight, bias;
};

namespace cuda {

void gru_forward(const GruArguments& args, const at::Tensor& gate_inputs, at::Tensor& output, at::Tensor& saved);
void gru_backward(const GruArguments& args, const at::Tensor& grad_output, const at::Tensor& output,
                  const at::Tensor& saved, GruGradients& grads);

}  // namespace cuda
}  // namespace grf
