// The operators that a captured CUDA graph of a training step runs between the other operators. Each function checks
// the arguments of one operator, allocates its results and launches its kernel. Specification:
// gru4rec_fast/ops/training_step.py.
#include "training_step/training_step.h"

#include <ATen/Dispatch.h>
#include <ATen/ops/empty.h>

#include <optional>
#include <tuple>
#include <vector>

#include "common/device.h"
#include "common/operator.h"

namespace grf::cuda {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

// Checks a tensor that is updated in place, and returns it. If the tensor were not contiguous, a copy would be updated.
Tensor check_updated(const Tensor& tensor, const char* name, at::IntArrayRef shape, at::ScalarType dtype,
                     const at::Device& device) {
  TORCH_CHECK_VALUE(tensor.is_contiguous(), name, " must be contiguous, since it is updated in place");
  return contiguous(tensor, name, shape, dtype, device);
}

Tensor check_updated(const OptionalTensor& tensor, const char* name, at::IntArrayRef shape, at::ScalarType dtype,
                     const at::Device& device) {
  return tensor.has_value() ? check_updated(*tensor, name, shape, dtype, device) : Tensor();
}

std::tuple<Tensor, Tensor, Tensor, Tensor> gather(const Tensor& embedding, const Tensor& inputs,
                                                  const OptionalTensor& mask, const Tensor& weight, const Tensor& bias,
                                                  const OptionalTensor& log_support, const Tensor& items, int64_t lanes,
                                                  double logq, double sample_alpha, bool bf16) {
  const at::Device device = embedding.device();
  const auto dtype = embedding.scalar_type();
  check_kernel_dtype("step_gather", dtype);
  TORCH_CHECK_VALUE(embedding.dim() == 2 && weight.dim() == 2 && inputs.dim() == 2 && items.dim() == 2,
                    "embedding and weight must be [R, width], inputs [T, B] and items [T, lanes + N], not ",
                    embedding.sizes(), ", ", weight.sizes(), ", ", inputs.sizes(), " and ", items.sizes());
  const int64_t n_rows = weight.size(0), steps = items.size(0), columns = items.size(1);
  const int64_t in_width = embedding.size(1), out_width = weight.size(1);
  TORCH_CHECK_VALUE(lanes >= 0 && lanes <= columns, "lanes=", lanes, ": items has only ", columns, " columns");
  TORCH_CHECK_VALUE(!bf16 || dtype == at::kFloat, "bf16=True needs float32 tensors, not ", dtype);
  // Contiguous versions of the arguments. w, b: of weight and bias.
  const Tensor table = contiguous(embedding, "embedding", embedding.sizes(), dtype, device);
  const Tensor index = contiguous(inputs, "inputs", inputs.sizes(), at::kLong, device);
  const Tensor factors = contiguous(mask, "mask", {inputs.size(0), inputs.size(1), in_width}, dtype, device);
  const Tensor w = contiguous(weight, "weight", weight.sizes(), dtype, device);
  const Tensor b = contiguous(bias, "bias", {n_rows}, dtype, device);
  const Tensor support = contiguous(log_support, "log_support", {n_rows}, dtype, device);
  const Tensor item_index = contiguous(items, "items", items.sizes(), at::kLong, device);

  const DeviceGuard guard(device);
  const auto options = embedding.options();
  const Tensor x = at::empty({inputs.size(0), inputs.size(1), in_width}, options);
  const Tensor rows = at::empty({steps, columns, out_width}, bf16 ? options.dtype(at::kBFloat16) : options);
  const Tensor biases = at::empty({steps, columns}, options);
  const Tensor log_q = support.defined() ? at::empty({steps, columns}, options) : at::empty({0}, options);
  AT_DISPATCH_FLOATING_TYPES(dtype, "step_gather", [&] {
    using T = scalar_t;
    const GatheredRows<T> input_rows{table.const_data_ptr<T>(),       table.size(0),        in_width,
                                     index.const_data_ptr<int64_t>(), index.numel(),        data_or_null<T>(factors),
                                     x.mutable_data_ptr<T>(),         /*bf16_rows=*/nullptr};
    const GatheredRows<T> item_rows{w.const_data_ptr<T>(),
                                    n_rows,
                                    out_width,
                                    item_index.const_data_ptr<int64_t>(),
                                    item_index.numel(),
                                    /*mask=*/nullptr,
                                    bf16 ? nullptr : rows.mutable_data_ptr<T>(),
                                    bf16 ? static_cast<uint16_t*>(rows.mutable_data_ptr()) : nullptr};
    step_gather<T>({input_rows, item_rows, b.const_data_ptr<T>(), data_or_null<T>(support), static_cast<T>(logq),
                    /*logq_negatives=*/static_cast<T>(logq * sample_alpha), columns, lanes,
                    biases.mutable_data_ptr<T>(), log_q.mutable_data_ptr<T>()},
                   current_stream(device));
  });
  return {x, rows, biases, log_q};
}

void store_losses(const Tensor& losses, const Tensor& active, const Tensor& stopped, const Tensor& step_losses,
                  const Tensor& enabled) {
  const at::Device device = losses.device();
  const auto dtype = losses.scalar_type();
  check_kernel_dtype("step_store_losses_", dtype);
  const int64_t steps = losses.numel();
  TORCH_CHECK_VALUE(steps > 0, "losses must hold the loss of at least one step, not ", losses.sizes());
  const Tensor block_losses = contiguous(losses, "losses", {steps}, dtype, device);
  const Tensor active_steps = contiguous(active, "active", {steps}, at::kBool, device);
  const Tensor stop_flag = check_updated(stopped, "stopped", /*shape=*/{}, at::kBool, device);
  const Tensor stored_losses = check_updated(step_losses, "step_losses", {steps}, dtype, device);
  const Tensor update_flag = check_updated(enabled, "enabled", /*shape=*/{}, at::kBool, device);
  const DeviceGuard guard(device);
  AT_DISPATCH_FLOATING_TYPES(dtype, "step_store_losses_", [&] {
    step_store_losses_<scalar_t>({block_losses.const_data_ptr<scalar_t>(), active_steps.const_data_ptr<bool>(), steps,
                                  stop_flag.mutable_data_ptr<bool>(), stored_losses.mutable_data_ptr<scalar_t>(),
                                  update_flag.mutable_data_ptr<bool>()},
                                 current_stream(device));
  });
}

void apply(at::TensorList weights, at::TensorList accumulators, at::TensorList velocities, at::TensorList grads,
           at::TensorList states, at::TensorList outputs, const Tensor& enabled, const Tensor& hyperparameters) {
  const at::Device device = enabled.device();
  TORCH_CHECK_VALUE(
      accumulators.size() == weights.size() && grads.size() == weights.size() &&
          (velocities.empty() || velocities.size() == weights.size()) && states.size() == outputs.size(),
      "every weight needs an accumulator, a gradient and, with momentum, a velocity; every state needs an output");
  if (weights.empty() && states.empty()) return;
  const auto dtype = (weights.empty() ? states : weights)[0].scalar_type();
  check_kernel_dtype("step_apply_", dtype);
  const Tensor update_flag = contiguous(enabled, "enabled", /*shape=*/{}, at::kBool, device);
  const Tensor adagrad_values = contiguous(hyperparameters, "hyperparameters", {3}, at::kDouble, device);
  const DeviceGuard guard(device);
  AT_DISPATCH_FLOATING_TYPES(dtype, "step_apply_", [&] {
    // A launch updates up to kMaxTensors tensors.
    StepApply<scalar_t> batch{/*tensors=*/{}, /*n=*/0, update_flag.const_data_ptr<bool>(),
                              adagrad_values.const_data_ptr<double>()};
    std::vector<Tensor> contiguous_grads;  // keeps copies made by `contiguous` alive until the launch
    const auto add = [&](const Tensor& weight, const OptionalTensor& accumulator, const OptionalTensor& velocity,
                         const Tensor& grad) {
      if (batch.n == kMaxTensors) step_apply_(batch, current_stream(device)), batch.n = 0;
      const auto shape = weight.sizes();
      contiguous_grads.push_back(contiguous(grad, "grads and outputs", shape, dtype, device));
      const int64_t start = batch.n == 0 ? 0 : batch.tensors[batch.n - 1].end;
      batch.tensors[batch.n++] = {
          mutable_data_or_null<scalar_t>(check_updated(weight, "weights and states", shape, dtype, device)),
          mutable_data_or_null<scalar_t>(check_updated(accumulator, "accumulators", shape, dtype, device)),
          mutable_data_or_null<scalar_t>(check_updated(velocity, "velocities", shape, dtype, device)),
          contiguous_grads.back().template const_data_ptr<scalar_t>(), start + weight.numel()};
    };
    for (size_t i = 0; i < weights.size(); ++i) {
      add(weights[i], accumulators[i], velocities.empty() ? OptionalTensor() : OptionalTensor(velocities[i]), grads[i]);
    }
    for (size_t i = 0; i < states.size(); ++i) add(states[i], std::nullopt, std::nullopt, outputs[i]);
    step_apply_(batch, current_stream(device));
  });
}

void update_rows(const Tensor& weight, const Tensor& accumulator, const OptionalTensor& velocity,
                 const OptionalTensor& bias, const OptionalTensor& bias_accumulator,
                 const OptionalTensor& bias_velocity, const Tensor& rows, const Tensor& positions,
                 const Tensor& grad_inputs, const Tensor& grad_items, const OptionalTensor& grad_bias,
                 const Tensor& enabled, const Tensor& hyperparameters) {
  const at::Device device = weight.device();
  const auto dtype = weight.scalar_type();
  check_kernel_dtype("step_rows_", dtype);
  TORCH_CHECK_VALUE(weight.dim() == 2 && grad_inputs.dim() == 2 && grad_items.dim() == 2,
                    "weight, grad_inputs and grad_items must have two dimensions, not ", weight.sizes(), ", ",
                    grad_inputs.sizes(), " and ", grad_items.sizes());
  TORCH_CHECK_VALUE(bias.has_value() == grad_bias.has_value() && bias.has_value() == bias_accumulator.has_value(),
                    "bias, bias_accumulator and grad_bias go together: pass all three, or None for each");
  const int64_t n_rows = weight.size(0), width = weight.size(1);
  const int64_t n_inputs = grad_inputs.size(0), n_items = grad_items.size(0), n = n_inputs + n_items;
  // w, acc, vel: weight, accumulator and velocity of the table; b, b_acc, b_vel: of the bias.
  const Tensor w = check_updated(weight, "weight", {n_rows, width}, dtype, device);
  const Tensor acc = check_updated(accumulator, "accumulator", {n_rows, width}, dtype, device);
  const Tensor vel = check_updated(velocity, "velocity", {n_rows, width}, dtype, device);
  const Tensor b = check_updated(bias, "bias", {n_rows}, dtype, device);
  const Tensor b_acc = check_updated(bias_accumulator, "bias_accumulator", {n_rows}, dtype, device);
  const Tensor b_vel = check_updated(bias_velocity, "bias_velocity", {n_rows}, dtype, device);
  TORCH_CHECK_VALUE(rows.dim() == 1 && rows.size(0) == n && rows.scalar_type() == at::kLong, "rows must be int64 [", n,
                    "], not ", rows.scalar_type(), " ", rows.sizes());
  const Tensor sorted = contiguous(rows, "rows", {n}, at::kLong, device);
  const Tensor order = contiguous(positions, "positions", {n}, at::kLong, device);
  const Tensor g_inputs = contiguous(grad_inputs, "grad_inputs", {n_inputs, width}, dtype, device);
  const Tensor g_items = contiguous(grad_items, "grad_items", {n_items, width}, dtype, device);
  const Tensor g_bias = contiguous(grad_bias, "grad_bias", {n_items}, dtype, device);
  const Tensor update_flag = contiguous(enabled, "enabled", /*shape=*/{}, at::kBool, device);
  const Tensor adagrad_values = contiguous(hyperparameters, "hyperparameters", {3}, at::kDouble, device);
  const DeviceGuard guard(device);
  AT_DISPATCH_FLOATING_TYPES(dtype, "step_rows_", [&] {
    using T = scalar_t;
    step_rows_<T>({sorted.const_data_ptr<int64_t>(), order.const_data_ptr<int64_t>(), n, n_rows, width, n_inputs,
                   g_inputs.const_data_ptr<T>(), g_items.const_data_ptr<T>(), data_or_null<T>(g_bias),
                   mutable_data_or_null<T>(w), mutable_data_or_null<T>(acc), mutable_data_or_null<T>(vel),
                   mutable_data_or_null<T>(b), mutable_data_or_null<T>(b_acc), mutable_data_or_null<T>(b_vel),
                   update_flag.const_data_ptr<bool>(), adagrad_values.const_data_ptr<double>()},
                  current_stream(device));
  });
}

GRF_CUDA_IMPL(m) {
  m.impl("step_gather", &gather);
  m.impl("step_store_losses_", &store_losses);
  m.impl("step_apply_", &apply);
  m.impl("step_rows_", &update_rows);
}

}  // namespace
}  // namespace grf::cuda
