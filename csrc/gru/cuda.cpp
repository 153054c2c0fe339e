// GRU with resets on CUDA, forward and backward. Specification: gru4rec_fast/ops/gru.py.
//
// A layer whose weights fit in a block's shared memory takes one launch for all its steps (gru/lanes.cuh). Another
// takes, for each step, one matrix product by torch and one pass over all units (two of each in the reset_before form).
// The gradients of weights and bias are one product and one sum over all steps at the end, in either case.
#include <ATen/Dispatch.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/sum.h>

#include "common/device.h"
#include "gru/arguments.h"

namespace grf::cuda {
namespace {

using at::Tensor;

bool in_one_launch(const GruArguments& given) {
  return given.steps > 0 &&
         gru_in_one_launch(given.lanes, given.hidden, static_cast<int64_t>(given.state.element_size()));
}

// The rows of the recurrent weights that multiply the state, and those of the gate n.
Tensor weight_of_gates(const GruArguments& given, const Tensor& weight) {
  return weight.narrow(0, 0, (given.after ? 3 : 2) * given.hidden);
}
Tensor weight_n(const GruArguments& given, const Tensor& weight) {
  return weight.narrow(0, 2 * given.hidden, given.hidden);
}

template <typename T>
void run_forward(const GruArguments& given, const Tensor& gate_inputs, Tensor& output, Tensor& saved) {
  const cudaStream_t stream = current_stream(given.device);
  GruForward<T> forward{given.layer<T>(),
                        gate_inputs.const_data_ptr<T>(),
                        output.mutable_data_ptr<T>(),
                        saved.mutable_data_ptr<T>(),
                        nullptr,
                        nullptr};
  if (in_one_launch(given)) return gru_all_steps(forward, stream);
  const Tensor weight = weight_of_gates(given, given.weight).t(), of_n = weight_n(given, given.weight).t();
  Tensor product = given.empty({given.lanes, weight.size(1)});
  Tensor product_n = given.after ? Tensor() : given.empty({given.lanes, given.hidden});
  forward.product = product.const_data_ptr<T>();
  forward.product_n = data_or_null<T>(product_n);
  for (int64_t t = 0; t < given.steps; ++t) {
    at::mm_out(product, t == 0 ? given.state : output[t - 1], weight);
    gru_one_step(forward, t, false, stream);
    if (given.after) continue;
    at::mm_out(product_n, saved[t].narrow(1, 3 * given.hidden, given.hidden), of_n);
    gru_one_step(forward, t, true, stream);
  }
}

// What the gradients of weights and bias are products of: the gradient of W s + b, and the states s that the steps
// began with.
struct Recurrent {
  Tensor grad, entering;
};

template <typename T>
void run_backward(const GruArguments& given, const Tensor& grad_output, const Tensor& output, const Tensor& saved,
                  GruGradients& grads, const Recurrent& recurrent) {
  const cudaStream_t stream = current_stream(given.device);
  const bool state_grad = grads.state.defined();
  Tensor carried = state_grad ? grads.state : given.empty({given.lanes, given.hidden});
  GruBackward<T> backward{given.layer<T>(),
                          grad_output.const_data_ptr<T>(),
                          output.const_data_ptr<T>(),
                          saved.const_data_ptr<T>(),
                          grads.gate_inputs.mutable_data_ptr<T>(),
                          given.after ? recurrent.grad.mutable_data_ptr<T>() : nullptr,
                          recurrent.entering.mutable_data_ptr<T>(),
                          carried.mutable_data_ptr<T>(),
                          nullptr};
  if (in_one_launch(given)) {
    if (!state_grad) backward.carried = nullptr;
    return gru_all_steps(backward, stream);
  }
  const Tensor weight = weight_of_gates(given, given.weight), of_n = weight_n(given, given.weight);
  Tensor grad_q = given.after ? Tensor() : given.empty({given.lanes, given.hidden});
  backward.grad_q = data_or_null<T>(grad_q);
  if (given.steps == 0) carried.zero_();
  for (int64_t t = given.steps - 1; t >= 0; --t) {
    gru_one_step(backward, t, false, stream);
    if (!given.after) {
      at::mm_out(grad_q, grads.gate_inputs[t].narrow(1, 2 * given.hidden, given.hidden), of_n);
      gru_one_step(backward, t, true, stream);
    }
    if (t > 0 || state_grad) at::addmm_out(carried, carried, recurrent.grad[t], weight);
  }
  if (state_grad && given.steps > 0 && given.reset.defined()) carried.masked_fill_(given.reset[0].unsqueeze(1), 0);
}

// Products and a sum over all steps and lanes, [T B, ...].
void weight_gradients(const GruArguments& given, const Tensor& saved, const Recurrent& recurrent, GruGradients& grads) {
  const int64_t hidden = given.hidden;
  const auto rows = [](const Tensor& tensor) { return tensor.flatten(0, 1); };
  Tensor of_gates = weight_of_gates(given, grads.weight), of_n = weight_n(given, grads.weight);
  at::mm_out(of_gates, rows(recurrent.grad).t(), rows(recurrent.entering));
  if (given.after) {
    at::sum_out(grads.bias, rows(recurrent.grad), 0);
  } else {
    at::mm_out(of_n, rows(grads.gate_inputs).narrow(1, 2 * hidden, hidden).t(),
               rows(saved).narrow(1, 3 * hidden, hidden));
    grads.bias.zero_();
  }
}

}  // namespace

void gru_forward(const GruArguments& given, const Tensor& gate_inputs, Tensor& output, Tensor& saved) {
  const DeviceGuard guard(given.device);
  const at::AutoDispatchBelowADInplaceOrView no_autograd;
  AT_DISPATCH_FLOATING_TYPES(given.state.scalar_type(), "gru",
                             [&] { run_forward<scalar_t>(given, gate_inputs, output, saved); });
}

void gru_backward(const GruArguments& given, const Tensor& grad_output, const Tensor& output, const Tensor& saved,
                  GruGradients& grads) {
  const DeviceGuard guard(given.device);
  const at::AutoDispatchBelowADInplaceOrView no_autograd;
  const int64_t steps = given.steps, lanes = given.lanes, hidden = given.hidden;
  const Recurrent recurrent{
      given.after ? given.empty({steps, lanes, 3 * hidden}) : grads.gate_inputs.narrow(2, 0, 2 * hidden),
      given.empty({steps, lanes, hidden})};
  AT_DISPATCH_FLOATING_TYPES(given.state.scalar_type(), "gru_backward",
                             [&] { run_backward<scalar_t>(given, grad_output, output, saved, grads, recurrent); });
  weight_gradients(given, saved, recurrent, grads);
}

}  // namespace grf::cuda
