// GRU with resets on CUDA, forward and backward. Specification: gru4rec_fast/reference/gru.py.
//
// A layer whose weights fit in a block's shared memory takes one launch for all its steps (gru/lanes.cuh). Another
// takes, for each step, one matrix product by torch and one pass over all units (two of each in the reset_before form).
// The gradients of weights and bias are one product and one sum over all steps at the end, in either case.
#include "gru/cuda.h"

#include <ATen/Dispatch.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/sum.h>
#include <ATen/ops/zeros.h>

#include <optional>
#include <string_view>
#include <tuple>

#include "common/device.h"

namespace grf::cuda {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

// The arguments that both directions share, checked and contiguous.
struct GruArguments {
  at::Device device;
  int64_t steps, lanes, hidden;
  bool after;
  Tensor state, weight, bias, reset, mask;

  GruArguments(const Tensor& block, int64_t width, const Tensor& state_, const Tensor& weight_,
               const OptionalTensor& bias_, const OptionalTensor& reset_, const OptionalTensor& mask_,
               std::string_view form)
      : device(state_.device()) {
    TORCH_CHECK_VALUE(state_.dim() == 2 && block.dim() == 3 && block.size(2) == width * state_.size(1),
                      "state must be [B, H] beside a last dimension of ", width, "H, not ", state_.sizes(), " beside ",
                      block.sizes());
    TORCH_CHECK_VALUE(form == "reset_after" || form == "reset_before", "form=", form,
                      ": choose reset_after or reset_before");
    steps = block.size(0), lanes = state_.size(0), hidden = state_.size(1);
    after = form == "reset_after";
    TORCH_CHECK_VALUE(after || !bias_.has_value(), "bias_hh: the reset_before form has none");
    const auto dtype = state_.scalar_type();
    check_float_or_double("gru", dtype);
    state = contiguous_on(device, state_, "state", {lanes, hidden}, dtype);
    weight = contiguous_on(device, weight_, "weight_hh", {3 * hidden, hidden}, dtype);
    bias = contiguous_on(device, bias_, "bias_hh", {3 * hidden}, dtype);
    reset = contiguous_on(device, reset_, "reset", {steps, lanes}, at::kBool);
    mask = contiguous_on(device, mask_, "output_mask", {steps, lanes, hidden}, dtype);
  }

  Tensor block(const Tensor& tensor, const char* name, int64_t width) const {
    return contiguous_on(device, tensor, name, {steps, lanes, width * hidden}, state.scalar_type());
  }
  Tensor empty(at::IntArrayRef shape) const { return at::empty(shape, state.options()); }
  bool in_one_launch() const {
    return steps > 0 && gru_in_one_launch(lanes, hidden, static_cast<int64_t>(state.element_size()));
  }
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
  Tensor weight_of_gates() const { return weight.narrow(0, 0, (after ? 3 : 2) * hidden); }  // that multiply the state
  Tensor weight_n() const { return weight.narrow(0, 2 * hidden, hidden); }
};

template <typename T>
void run_forward(const GruArguments& given, const Tensor& a, Tensor& output, Tensor& saved) {
  const cudaStream_t stream = current_stream(given.device);
  GruForward<T> forward{
      given.layer<T>(), a.const_data_ptr<T>(), output.mutable_data_ptr<T>(), saved.mutable_data_ptr<T>(), nullptr,
      nullptr};
  if (given.in_one_launch()) return gru_all_steps(forward, stream);
  const Tensor weight = given.weight_of_gates().t(), weight_n = given.weight_n().t();
  Tensor product = given.empty({given.lanes, weight.size(1)});
  Tensor product_n = given.after ? Tensor() : given.empty({given.lanes, given.hidden});
  forward.product = product.const_data_ptr<T>();
  forward.product_n = data_or_null<T>(product_n);
  for (int64_t t = 0; t < given.steps; ++t) {
    at::mm_out(product, t == 0 ? given.state : output[t - 1], weight);
    gru_one_step(forward, t, false, stream);
    if (given.after) continue;
    at::mm_out(product_n, saved[t].narrow(1, 3 * given.hidden, given.hidden), weight_n);
    gru_one_step(forward, t, true, stream);
  }
}

// What backward makes: the operator's results, and what the gradients of weights and bias are products of.
struct GruTensors {
  Tensor gate_inputs, state, weight, bias, recurrent, entering;
};

template <typename T>
void run_backward(const GruArguments& given, const Tensor& grad_output, const Tensor& output, const Tensor& saved,
                  bool state_grad, GruTensors& to) {
  const cudaStream_t stream = current_stream(given.device);
  GruBackward<T> backward{given.layer<T>(),
                          grad_output.const_data_ptr<T>(),
                          output.const_data_ptr<T>(),
                          saved.const_data_ptr<T>(),
                          to.gate_inputs.mutable_data_ptr<T>(),
                          given.after ? to.recurrent.mutable_data_ptr<T>() : nullptr,
                          to.entering.mutable_data_ptr<T>(),
                          to.state.mutable_data_ptr<T>(),
                          nullptr};
  if (given.in_one_launch()) {
    if (!state_grad) backward.carried = nullptr;
    return gru_all_steps(backward, stream);
  }
  const Tensor weight = given.weight_of_gates(), weight_n = given.weight_n();
  Tensor grad_q = given.after ? Tensor() : given.empty({given.lanes, given.hidden});
  backward.grad_q = data_or_null<T>(grad_q);
  if (given.steps == 0) to.state.zero_();
  for (int64_t t = given.steps - 1; t >= 0; --t) {
    gru_one_step(backward, t, false, stream);
    if (!given.after) {
      at::mm_out(grad_q, to.gate_inputs[t].narrow(1, 2 * given.hidden, given.hidden), weight_n);
      gru_one_step(backward, t, true, stream);
    }
    if (t > 0 || state_grad) at::addmm_out(to.state, to.state, to.recurrent[t], weight);
  }
  if (state_grad && given.steps > 0 && given.reset.defined()) to.state.masked_fill_(given.reset[0].unsqueeze(1), 0);
}

// Products and a sum over all steps and lanes, [T B, ...].
void weight_gradients(const GruArguments& given, const Tensor& saved, GruTensors& to) {
  const int64_t hidden = given.hidden;
  const auto rows = [](const Tensor& tensor) { return tensor.flatten(0, 1); };
  Tensor of_gates = to.weight.narrow(0, 0, (given.after ? 3 : 2) * hidden),
         of_n = to.weight.narrow(0, 2 * hidden, hidden);
  at::mm_out(of_gates, rows(to.recurrent).t(), rows(to.entering));
  if (given.after) {
    at::sum_out(to.bias, rows(to.recurrent), 0);
  } else {
    at::mm_out(of_n, rows(to.gate_inputs).narrow(1, 2 * hidden, hidden).t(), rows(saved).narrow(1, 3 * hidden, hidden));
    to.bias.zero_();
  }
}

std::tuple<Tensor, Tensor> gru(const Tensor& gate_inputs, const Tensor& state, const Tensor& weight_hh,
                               const OptionalTensor& bias_hh, const OptionalTensor& reset,
                               const OptionalTensor& output_mask, std::string_view form) {
  const GruArguments given(gate_inputs, 3, state, weight_hh, bias_hh, reset, output_mask, form);
  const DeviceGuard guard(given.device);
  const at::AutoDispatchBelowADInplaceOrView no_autograd;
  const Tensor a = given.block(gate_inputs, "gate_inputs", 3);
  Tensor output = given.empty({given.steps, given.lanes, given.hidden});
  Tensor saved = given.empty({given.steps, given.lanes, 4 * given.hidden});
  AT_DISPATCH_FLOATING_TYPES(state.scalar_type(), "gru", [&] { run_forward<scalar_t>(given, a, output, saved); });
  return {output, saved};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> gru_backward(const Tensor& grad_output, const Tensor& output,
                                                        const Tensor& saved, const Tensor& state,
                                                        const Tensor& weight_hh, const OptionalTensor& bias_hh,
                                                        const OptionalTensor& reset, const OptionalTensor& output_mask,
                                                        std::string_view form, bool state_grad) {
  const GruArguments given(saved, 4, state, weight_hh, bias_hh, reset, output_mask, form);
  const DeviceGuard guard(given.device);
  const at::AutoDispatchBelowADInplaceOrView no_autograd;
  const Tensor grad = given.block(grad_output, "grad_output", 1), h = given.block(output, "output", 1);
  const Tensor gates = given.block(saved, "saved", 4);
  const int64_t steps = given.steps, lanes = given.lanes, hidden = given.hidden;
  GruTensors to{given.empty({steps, lanes, 3 * hidden}),
                given.empty({lanes, hidden}),
                given.empty({3 * hidden, hidden}),
                given.empty({3 * hidden}),
                Tensor(),
                given.empty({steps, lanes, hidden})};
  to.recurrent = given.after ? given.empty({steps, lanes, 3 * hidden}) : to.gate_inputs.narrow(2, 0, 2 * hidden);
  AT_DISPATCH_FLOATING_TYPES(state.scalar_type(), "gru_backward",
                             [&] { run_backward<scalar_t>(given, grad, h, gates, state_grad, to); });
  weight_gradients(given, gates, to);
  return {to.gate_inputs, state_grad ? to.state : given.empty({0}), to.weight, to.bias};
}

GRF_DEVICE_IMPL(m) {
  m.impl("gru", &gru);
  m.impl("gru_backward", &gru_backward);
}

}  // namespace
}  // namespace grf::cuda
