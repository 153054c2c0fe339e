// The operators of the GRU with resets. Specification: gru4rec_fast/ops/gru.py.
#include "gru/gru.h"

#include <ATen/Dispatch.h>

#include <tuple>

#include "common/scratch.h"
#include "gru/arguments.h"
#include "gru/cpu.h"

namespace grf {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

GruArguments::GruArguments(const Tensor& block, int64_t width, const Tensor& state_, const Tensor& weight_hh,
                           const OptionalTensor& bias_hh, const OptionalTensor& reset_,
                           const OptionalTensor& output_mask, std::string_view form)
    : device(state_.device()) {
  TORCH_CHECK_VALUE(state_.dim() == 2 && block.dim() == 3 && block.size(2) == width * state_.size(1),
                    "state must be [B, H] beside a last dimension of ", width, "H, not ", state_.sizes(), " beside ",
                    block.sizes());
  TORCH_CHECK_VALUE(form == "reset_after" || form == "reset_before", "form=", form,
                    ": choose reset_after or reset_before");
  steps = block.size(0), lanes = state_.size(0), hidden = state_.size(1);
  after = form == "reset_after";
  TORCH_CHECK_VALUE(after || !bias_hh.has_value(), "bias_hh: the reset_before form has none");
  const auto dtype = state_.scalar_type();
  check_kernel_dtype("gru", dtype);
  state = contiguous(state_, "state", {lanes, hidden}, dtype, device);
  weight = contiguous(weight_hh, "weight_hh", {3 * hidden, hidden}, dtype, device);
  bias = contiguous(bias_hh, "bias_hh", {3 * hidden}, dtype, device);
  reset = contiguous(reset_, "reset", {steps, lanes}, at::kBool, device);
  mask = contiguous(output_mask, "output_mask", {steps, lanes, hidden}, dtype, device);
}

namespace {

struct RecurrentScratch;

template <typename T>
void run_backward(const GruArguments& given, const Tensor& grad_output, const Tensor& output, const Tensor& saved,
                  GruGradients& grads) {
  const GruLayer<T> layer = given.layer<T>();
  const T *outputs = output.const_data_ptr<T>(), *saved_gates = saved.const_data_ptr<T>();
  Scratch<T, RecurrentScratch> scratch(3 * grad_output.numel());
  const GruLaneGradients<T> lanes{grads.gate_inputs.mutable_data_ptr<T>(), scratch.take(3 * grad_output.numel()),
                                  mutable_data_or_null<T>(grads.state)};
  gru_backward_lanes(layer, grad_output.const_data_ptr<T>(), outputs, saved_gates, lanes);
  gru_backward_weights(layer, outputs, saved_gates, lanes.gate_inputs, lanes.recurrent,
                       GruWeightGradients<T>{grads.weight.mutable_data_ptr<T>(), grads.bias.mutable_data_ptr<T>()});
}

template <Kernels kernels>
std::tuple<Tensor, Tensor> gru(const Tensor& gate_inputs, const Tensor& state, const Tensor& weight_hh,
                               const OptionalTensor& bias_hh, const OptionalTensor& reset,
                               const OptionalTensor& output_mask, std::string_view form) {
  const GruArguments given(gate_inputs, 3, state, weight_hh, bias_hh, reset, output_mask, form);
  const Tensor a = given.block(gate_inputs, "gate_inputs", 3);
  Tensor output = given.empty({given.steps, given.lanes, given.hidden});
  Tensor saved = given.empty({given.steps, given.lanes, 4 * given.hidden});
  if constexpr (kernels == Kernels::cuda) {
    cuda::gru_forward(given, a, output, saved);
  } else {
    AT_DISPATCH_FLOATING_TYPES(state.scalar_type(), "gru", [&] {
      gru_forward(given.layer<scalar_t>(), a.const_data_ptr<scalar_t>(), output.mutable_data_ptr<scalar_t>(),
                  saved.mutable_data_ptr<scalar_t>());
    });
  }
  return {output, saved};
}

template <Kernels kernels>
std::tuple<Tensor, Tensor, Tensor, Tensor> gru_backward(const Tensor& grad_output, const Tensor& output,
                                                        const Tensor& saved, const Tensor& state,
                                                        const Tensor& weight_hh, const OptionalTensor& bias_hh,
                                                        const OptionalTensor& reset, const OptionalTensor& output_mask,
                                                        std::string_view form, bool state_grad) {
  const GruArguments given(saved, 4, state, weight_hh, bias_hh, reset, output_mask, form);
  const Tensor grad = given.block(grad_output, "grad_output", 1), h = given.block(output, "output", 1);
  const Tensor gates = given.block(saved, "saved", 4);
  const int64_t hidden = given.hidden;
  GruGradients grads{given.empty({given.steps, given.lanes, 3 * hidden}),
                     state_grad ? given.empty({given.lanes, hidden}) : Tensor(), given.empty({3 * hidden, hidden}),
                     given.empty({3 * hidden})};
  if constexpr (kernels == Kernels::cuda) {
    cuda::gru_backward(given, grad, h, gates, grads);
  } else {
    AT_DISPATCH_FLOATING_TYPES(state.scalar_type(), "gru_backward",
                               [&] { run_backward<scalar_t>(given, grad, h, gates, grads); });
  }
  return {grads.gate_inputs, state_grad ? grads.state : given.empty({0}), grads.weight, grads.bias};
}

template <Kernels kernels>
void implement(torch::Library& m) {
  m.impl("gru", &gru<kernels>);
  m.impl("gru_backward", &gru_backward<kernels>);
}
GRF_REGISTER(implement)

}  // namespace
}  // namespace grf
