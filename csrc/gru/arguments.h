// The tensors of the GRU's operators: what gru/gru.cpp checks and allocates, and gru/cuda.cpp works on.
#pragma once

#include <ATen/ops/empty.h>

#include <optional>
#include <string_view>

#include "common/operator.h"
#include "gru/gru.h"

namespace grf {

// The arguments that both directions share, checked and contiguous.
struct GruArguments {
  at::Device device;
  int64_t steps, lanes, hidden;
  bool after;
  at::Tensor state, weight, bias, reset, mask;

  // `block` is [T, B, width * H].
  GruArguments(const at::Tensor& block, int64_t width, const at::Tensor& state, const at::Tensor& weight_hh,
               const std::optional<at::Tensor>& bias_hh, const std::optional<at::Tensor>& reset,
               const std::optional<at::Tensor>& output_mask, std::string_view form);

  at::Tensor block(const at::Tensor& tensor, const char* name, int64_t width) const {
    return contiguous(tensor, name, {steps, lanes, width * hidden}, state.scalar_type(), device);
  }
  at::Tensor empty(at::IntArrayRef shape) const { return at::empty(shape, state.options()); }
  template <typename T>
  GruLayer<T> layer() const {
    return {steps,
            lanes,
            hidden,
            after,
            state.const_data_ptr<T>(),
            weight.const_data_ptr<T>(),
            data_or_null<T>(bias),
            data_or_null<bool>(reset),
            data_or_null<T>(mask)};
  }
};

// The results of backward; `state` is undefined where nobody wants it.
struct GruGradients {
  at::Tensor gate_inputs, state, weight, bias;
};

namespace cuda {

void gru_forward(const GruArguments& given, const at::Tensor& gate_inputs, at::Tensor& output, at::Tensor& saved);
void gru_backward(const GruArguments& given, const at::Tensor& grad_output, const at::Tensor& output,
                  const at::Tensor& saved, GruGradients& grads);

}  // namespace cuda
}  // namespace grf
