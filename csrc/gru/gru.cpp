// The operators `gru` and `gru_backward`: checks of arguments and allocation. Specification: gru4rec_fast/ops/gru.py.
#include "gru/gru.h"

#include <ATen/Dispatch.h>

#include <algorithm>
#include <tuple>

#include "common/scratch.h"
#include "gru/arguments.h"
#include "gru/cpu.h"

namespace grf {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

GruArguments::GruArguments(const Tensor& gates, int64_t n_gates, const Tensor& state_, const Tensor& weight_hh,
                           const OptionalTensor& bias_hh, const OptionalTensor& reset_,
                           const OptionalTensor& output_mask, std::string_view form)
    : device(state_.device()) {
  TORCH_CHECK_VALUE(state_.dim() == 2 && gates.dim() == 3 && state_.size(1) < int64_t{1} << 31 &&
                        gates.size(2) == n_gates * state_.size(1),
                    "state and ", n_gates == 3 ? "gate_inputs" : "saved", " must be [B, H] and [T, B, ", n_gates,
                    " H] with H < 2**31, not ", state_.sizes(), " and ", gates.sizes());
  TORCH_CHECK_VALUE(form == "reset_after" || form == "reset_before", "form=", form,
                    ": choose reset_after or reset_before");
  steps = gates.size(0), lanes = state_.size(0), hidden = state_.size(1);
  reset_after = form == "reset_after";
  TORCH_CHECK_VALUE(reset_after || !bias_hh.has_value(), "bias_hh must be None in the reset_before form");
  const auto dtype = state_.scalar_type();
  check_kernel_dtype("gru", dtype);
  state = contiguous(state_, "state", {lanes, hidden}, dtype, device);
  weight = contiguous(weight_hh, "weight_hh", {3 * hidden, hidden}, dtype, device);
  bias = contiguous(bias_hh, "bias_hh", {3 * hidden}, dtype, device);
  reset = contiguous(reset_, "reset", {steps, lanes}, at::kBool, device);
  mask = contiguous(output_mask, "output_mask", {steps, lanes, hidden}, dtype, device);
}

namespace {

struct PartScratch;  // the tag of a buffer that Scratch keeps for each thread

// Computes `grads` on the CPU, for several steps at a time: first the gradients of the lanes, then what these steps add
// to the gradients of the weights. So the gradients of the lanes are still in the cache when they are read again.
template <typename T>
void run_backward(const GruArguments& args, const Tensor& grad_output, const Tensor& output, const Tensor& saved,
                  GruGradients& grads) {
  // Rows (steps times lanes) per matrix product. With more rows, a product would take hardly less time per row.
  constexpr int64_t kRows = 1024;
  const GruLayer<T> layer = args.layer<T>();
  const int64_t state_size = args.lanes * args.hidden;
  const int64_t steps_at_a_time = std::clamp<int64_t>(kRows / args.lanes, 1, args.steps);
  const T *output_data = output.const_data_ptr<T>(), *saved_data = saved.const_data_ptr<T>();
  Scratch<T, PartScratch> scratch((3 * steps_at_a_time + 1) * state_size);
  T* grad_recurrent = scratch.take(3 * steps_at_a_time * state_size);
  // The gradient of the state before the steps that have been processed.
  T* grad_state = grads.state.defined() ? grads.state.mutable_data_ptr<T>() : scratch.take(state_size);
  for (int64_t end = args.steps, begin; end > 0; end = begin) {
    begin = std::max<int64_t>(0, end - steps_at_a_time);
    const GruLayer<T> part = layer.range(begin, end, output_data);
    const auto from_begin = [&](auto* array, int64_t factor) { return array + begin * factor * state_size; };
    const GruLaneGradients<T> lane_grads{from_begin(grads.gate_inputs.mutable_data_ptr<T>(), 3), grad_recurrent,
                                         begin > 0 || grads.state.defined() ? grad_state : nullptr,
                                         end < args.steps ? grad_state : nullptr};
    gru_backward_lanes(part, from_begin(grad_output.const_data_ptr<T>(), 1), from_begin(output_data, 1),
                       from_begin(saved_data, 4), lane_grads);
    gru_backward_weights(part, from_begin(output_data, 1), from_begin(saved_data, 4), lane_grads.gate_inputs,
                         grad_recurrent,
                         GruWeightGradients<T>{grads.weight.mutable_data_ptr<T>(), grads.bias.mutable_data_ptr<T>(),
                                               /*add=*/end < args.steps});
  }
}

template <Kernels kernels>
std::tuple<Tensor, Tensor> gru(const Tensor& gate_inputs, const Tensor& state, const Tensor& weight_hh,
                               const OptionalTensor& bias_hh, const OptionalTensor& reset,
                               const OptionalTensor& output_mask, std::string_view form) {
  const GruArguments args(gate_inputs, 3, state, weight_hh, bias_hh, reset, output_mask, form);
  const Tensor inputs = args.sequence(gate_inputs, "gate_inputs", 3);
  Tensor output = args.empty({args.steps, args.lanes, args.hidden});
  Tensor saved = args.empty({args.steps, args.lanes, 4 * args.hidden});
  if (output.numel() == 0) return {output, saved};  // without a loop over up to 2**63 empty steps
  if constexpr (kernels == Kernels::cuda) {
    cuda::gru_forward(args, inputs, output, saved);
  } else {
    AT_DISPATCH_FLOATING_TYPES(state.scalar_type(), "gru", [&] {
      gru_forward(args.layer<scalar_t>(), inputs.const_data_ptr<scalar_t>(), output.mutable_data_ptr<scalar_t>(),
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
  const GruArguments args(saved, 4, state, weight_hh, bias_hh, reset, output_mask, form);
  const Tensor grad_h = args.sequence(grad_output, "grad_output", 1), h = args.sequence(output, "output", 1);
  const Tensor gates = args.sequence(saved, "saved", 4);
  const int64_t hidden = args.hidden;
  GruGradients grads{args.empty({args.steps, args.lanes, 3 * hidden}),
                     state_grad ? args.empty({args.lanes, hidden}) : Tensor(), args.empty({3 * hidden, hidden}),
                     args.empty({3 * hidden})};
  if (h.numel() == 0) {
    if (state_grad) grads.state.zero_();
    grads.weight.zero_(), grads.bias.zero_();
  } else if constexpr (kernels == Kernels::cuda) {
    cuda::gru_backward(args, grad_h, h, gates, grads);
  } else {
    AT_DISPATCH_FLOATING_TYPES(state.scalar_type(), "gru_backward",
                               [&] { run_backward<scalar_t>(args, grad_h, h, gates, grads); });
  }
  return {grads.gate_inputs, state_grad ? grads.state : args.empty({0}), grads.weight, grads.bias};
}

GRF_REGISTER(gru)
GRF_REGISTER(gru_backward)

}  // namespace
}  // namespace grf
