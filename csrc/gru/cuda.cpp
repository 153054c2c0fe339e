// GRU with resets on CUDA, forward and backward. Specification: gru4rec_fast/ops/gru.py.
//
// If a layer's weights fit into a block's shared memory and the lanes are not too many, one launch processes all steps
// (gru/all_steps.cuh). Otherwise each step takes one matrix product by torch and one kernel over all units
// (gru/cuda.cuh), or two of each in the reset_before form. In both cases, torch computes the gradients of weights and
// bias at the end, over all steps: by one product and one sum; in the reset_before form, which has no recurrent bias,
// by two products. gru/gru.h explains s, W, b and q.
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

bool runs_in_one_launch(const GruArguments& args) {
  return gru_runs_in_one_launch(args.lanes, args.hidden, static_cast<int64_t>(args.state.element_size()));
}

// Returns the rows of the recurrent weights that multiply the previous state: all rows in the reset_after form, the
// rows of the gates r and z in the reset_before form.
Tensor weight_of_state(const GruArguments& args, const Tensor& weight) {
  return weight.narrow(0, 0, (args.reset_after ? 3 : 2) * args.hidden);
}
// Returns the rows of the recurrent weights for gate n.
Tensor weight_of_n(const GruArguments& args, const Tensor& weight) {
  return weight.narrow(0, 2 * args.hidden, args.hidden);
}

template <typename T>
void run_forward(const GruArguments& args, const Tensor& gate_inputs, Tensor& output, Tensor& saved) {
  const cudaStream_t stream = current_stream(args.device);
  GruForward<T> forward{
      args.layer<T>(),      gate_inputs.const_data_ptr<T>(), output.mutable_data_ptr<T>(), saved.mutable_data_ptr<T>(),
      /*product=*/nullptr,
      /*product_n=*/nullptr};
  if (runs_in_one_launch(args)) return launch_gru_all_steps(forward, stream);
  const Tensor weight = weight_of_state(args, args.weight).t(), weight_n = weight_of_n(args, args.weight).t();
  Tensor product = args.empty({args.lanes, weight.size(1)});
  Tensor product_n = args.reset_after ? Tensor() : args.empty({args.lanes, args.hidden});
  forward.product = product.const_data_ptr<T>();
  forward.product_n = data_or_null<T>(product_n);
  for (int64_t t = 0; t < args.steps; ++t) {
    at::mm_out(product, t == 0 ? args.state : output[t - 1], weight);
    launch_gru_step(forward, t, /*second_launch=*/false, stream);
    if (args.reset_after) continue;
    at::mm_out(product_n, saved[t].narrow(1, 3 * args.hidden, args.hidden), weight_n);
    launch_gru_step(forward, t, /*second_launch=*/true, stream);
  }
}

// Two matrices whose product is the gradient of the weights: the gradient of W s + b (W_rz s in the reset_before form)
// and the previous states s, for all steps.
struct GradientFactors {
  Tensor grad_recurrent, prev_states;
};

template <typename T>
void run_backward(const GruArguments& args, const Tensor& grad_output, const Tensor& output, const Tensor& saved,
                  GruGradients& grads, const GradientFactors& factors) {
  const cudaStream_t stream = current_stream(args.device);
  const bool needs_state_grad = grads.state.defined();
  Tensor grad_state = needs_state_grad ? grads.state : args.empty({args.lanes, args.hidden});
  GruBackward<T> backward{args.layer<T>(),
                          grad_output.const_data_ptr<T>(),
                          output.const_data_ptr<T>(),
                          saved.const_data_ptr<T>(),
                          grads.gate_inputs.mutable_data_ptr<T>(),
                          args.reset_after ? factors.grad_recurrent.mutable_data_ptr<T>() : nullptr,
                          factors.prev_states.mutable_data_ptr<T>(),
                          grad_state.mutable_data_ptr<T>(),
                          /*grad_q=*/nullptr};
  if (runs_in_one_launch(args)) {
    if (!needs_state_grad) backward.grad_state = nullptr;
    return launch_gru_all_steps(backward, stream);
  }
  const Tensor weight = weight_of_state(args, args.weight), weight_n = weight_of_n(args, args.weight);
  Tensor grad_q = args.reset_after ? Tensor() : args.empty({args.lanes, args.hidden});
  backward.grad_q = data_or_null<T>(grad_q);
  for (int64_t t = args.steps - 1; t >= 0; --t) {
    launch_gru_step(backward, t, /*second_launch=*/false, stream);
    if (!args.reset_after) {
      at::mm_out(grad_q, grads.gate_inputs[t].narrow(1, 2 * args.hidden, args.hidden), weight_n);
      launch_gru_step(backward, t, /*second_launch=*/true, stream);
    }
    if (t > 0 || needs_state_grad) at::addmm_out(grad_state, grad_state, factors.grad_recurrent[t], weight);
  }
  if (needs_state_grad && args.reset.defined()) grad_state.masked_fill_(args.reset[0].unsqueeze(1), 0);
}

// Computes the gradients of weights and bias, which are sums over all steps and lanes.
void compute_weight_gradients(const GruArguments& args, const Tensor& saved, const GradientFactors& factors,
                              GruGradients& grads) {
  const int64_t hidden = args.hidden;
  const auto as_rows = [](const Tensor& tensor) { return tensor.flatten(0, 1); };  // [T, B, ...] to [T * B, ...]
  Tensor grad_weight_state = weight_of_state(args, grads.weight), grad_weight_n = weight_of_n(args, grads.weight);
  at::mm_out(grad_weight_state, as_rows(factors.grad_recurrent).t(), as_rows(factors.prev_states));
  if (args.reset_after) {
    at::sum_out(grads.bias, as_rows(factors.grad_recurrent), /*dim=*/0);
  } else {
    at::mm_out(grad_weight_n, as_rows(grads.gate_inputs).narrow(1, 2 * hidden, hidden).t(),
               as_rows(saved).narrow(1, 3 * hidden, hidden));
    grads.bias.zero_();  // the reset_before form has no recurrent bias
  }
}

}  // namespace

void gru_forward(const GruArguments& args, const Tensor& gate_inputs, Tensor& output, Tensor& saved) {
  const DeviceGuard guard(args.device);
  const at::AutoDispatchBelowADInplaceOrView no_autograd;
  AT_DISPATCH_FLOATING_TYPES(args.state.scalar_type(), "gru",
                             [&] { run_forward<scalar_t>(args, gate_inputs, output, saved); });
}

void gru_backward(const GruArguments& args, const Tensor& grad_output, const Tensor& output, const Tensor& saved,
                  GruGradients& grads) {
  const DeviceGuard guard(args.device);
  const at::AutoDispatchBelowADInplaceOrView no_autograd;
  const int64_t steps = args.steps, lanes = args.lanes, hidden = args.hidden;
  const GradientFactors factors{
      args.reset_after ? args.empty({steps, lanes, 3 * hidden}) : grads.gate_inputs.narrow(2, 0, 2 * hidden),
      args.empty({steps, lanes, hidden})};
  AT_DISPATCH_FLOATING_TYPES(args.state.scalar_type(), "gru_backward",
                             [&] { run_backward<scalar_t>(args, grad_output, output, saved, grads, factors); });
  compute_weight_gradients(args, saved, factors, grads);
}

}  // namespace grf::cuda
