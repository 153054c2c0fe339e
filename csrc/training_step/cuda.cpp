// The operators that a captured CUDA graph of a training step runs between the other operators. Each function checks
// the arguments of one operator, allocates its results and launches its kernel. Specification:
// gru4rec_fast/ops/training_step.py.
#include "training_step/training_step.h"

#include <ATen/Dispatch.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include <algorithm>
#include <optional>
#include <string_view>
#include <tuple>
#include <vector>

#include "common/device.h"
#include "common/operator.h"
#include "gru/arguments.h"
#include "sampled_loss/arguments.h"

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

std::tuple<Tensor, Tensor, Tensor> gather(const Tensor& embedding, const Tensor& inputs, const OptionalTensor& mask,
                                          const Tensor& weight, const Tensor& bias, const OptionalTensor& log_support,
                                          const Tensor& items, int64_t lanes, double logq, double sample_alpha,
                                          bool bf16) {
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
  const Tensor offsets = at::empty({steps, columns}, options);
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
    step_gather<T>(
        {input_rows, item_rows, b.const_data_ptr<T>(), data_or_null<T>(support), static_cast<T>(logq),
         /*logq_negatives=*/static_cast<T>(logq * sample_alpha), columns, lanes, offsets.mutable_data_ptr<T>()},
        current_stream(device));
  });
  return {x, rows, offsets};
}

void store_losses(const Tensor& losses, const Tensor& active, const Tensor& stopped, const Tensor& step_losses,
                  const Tensor& enabled) {
  const at::Device device = losses.device();
  const auto dtype = losses.scalar_type();
  check_kernel_dtype("step_store_losses_", dtype);
  TORCH_CHECK_VALUE(losses.dim() == 2 && losses.size(0) > 0, "losses must be [T, B] with T > 0, not ", losses.sizes());
  const int64_t steps = losses.size(0), lanes = losses.size(1);
  const Tensor block_losses = contiguous(losses, "losses", {steps, lanes}, dtype, device);
  const Tensor active_steps = contiguous(active, "active", {steps}, at::kBool, device);
  const Tensor stop_flag = check_updated(stopped, "stopped", /*shape=*/{}, at::kBool, device);
  const Tensor stored_losses = check_updated(step_losses, "step_losses", {steps}, dtype, device);
  const Tensor update_flag = check_updated(enabled, "enabled", /*shape=*/{}, at::kBool, device);
  const DeviceGuard guard(device);
  AT_DISPATCH_FLOATING_TYPES(dtype, "step_store_losses_", [&] {
    step_store_losses_<scalar_t>({block_losses.const_data_ptr<scalar_t>(), lanes, active_steps.const_data_ptr<bool>(),
                                  steps, stop_flag.mutable_data_ptr<bool>(), stored_losses.mutable_data_ptr<scalar_t>(),
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

// Returns the first tensor of two lists, of which one is not empty.
const Tensor& first_of(at::TensorList first, at::TensorList second) {
  return (first.empty() ? second : first)[0];
}

void products(at::TensorList weights, at::TensorList accumulators, at::TensorList velocities, at::TensorList lefts,
              at::TensorList rights, at::TensorList states, at::TensorList outputs, const Tensor& enabled,
              const Tensor& hyperparameters) {
  const at::Device device = enabled.device();
  const auto n_matrices = static_cast<size_t>(
      std::count_if(weights.begin(), weights.end(), [](const Tensor& weight) { return weight.dim() == 2; }));
  TORCH_CHECK_VALUE(
      accumulators.size() == weights.size() && lefts.size() == weights.size() && rights.size() == n_matrices &&
          (velocities.empty() || velocities.size() == weights.size()) && states.size() == outputs.size(),
      "every weight needs an accumulator, a left factor, a right factor if it is a matrix and, with momentum, a "
      "velocity; every state needs an output");
  if (weights.empty() && states.empty()) return;
  const auto dtype = first_of(weights, states).scalar_type();
  check_kernel_dtype("step_products_", dtype);
  const Tensor update_flag = contiguous(enabled, "enabled", /*shape=*/{}, at::kBool, device);
  const Tensor adagrad_values = contiguous(hyperparameters, "hyperparameters", {3}, at::kDouble, device);
  const DeviceGuard guard(device);
  AT_DISPATCH_FLOATING_TYPES(dtype, "step_products_", [&] {
    using T = scalar_t;
    const int64_t depth = lefts.empty() ? 0 : lefts[0].size(0);
    // A launch updates up to kMaxTensors tensors.
    StepProducts<T> batch{/*products=*/{}, /*n=*/0, depth, update_flag.const_data_ptr<bool>(),
                          adagrad_values.const_data_ptr<double>()};
    std::vector<Tensor> kept;  // keeps copies made by `contiguous` alive until the launch
    const auto data = [&](const Tensor& tensor, const char* name, at::IntArrayRef shape) {
      kept.push_back(contiguous(tensor, name, shape, dtype, device));
      return kept.back().template const_data_ptr<T>();
    };
    const auto add = [&](GradientProduct<T> product) {
      if (batch.n == kMaxTensors) step_products_(batch, current_stream(device)), batch.n = 0;
      const int64_t start = batch.n == 0 ? 0 : batch.products[batch.n - 1].end_tile;
      product.end_tile = start + step_product_tiles(product.rows, product.columns);
      batch.products[batch.n++] = product;
    };
    size_t matrix = 0;
    for (size_t i = 0; i < weights.size(); ++i) {
      const auto shape = weights[i].sizes();
      TORCH_CHECK_VALUE(shape.size() == 1 || shape.size() == 2, "weights must be [R] or [R, C], not ", shape);
      const int64_t rows = shape[0], columns = shape.size() == 1 ? 1 : shape[1];
      add({mutable_data_or_null<T>(check_updated(weights[i], "weights", shape, dtype, device)),
           mutable_data_or_null<T>(check_updated(accumulators[i], "accumulators", shape, dtype, device)),
           velocities.empty()
               ? nullptr
               : mutable_data_or_null<T>(check_updated(velocities[i], "velocities", shape, dtype, device)),
           data(lefts[i], "lefts", {depth, rows}),
           weights[i].dim() == 1 ? nullptr : data(rights[matrix++], "rights", {depth, columns}), rows, columns,
           /*end_tile=*/0});
    }
    for (size_t i = 0; i < states.size(); ++i) {
      const auto shape = states[i].sizes();
      TORCH_CHECK_VALUE(states[i].dim() == 2, "states must be [B, H], not ", shape);
      add({mutable_data_or_null<T>(check_updated(states[i], "states", shape, dtype, device)), /*accumulator=*/nullptr,
           /*velocity=*/nullptr, data(outputs[i], "outputs", shape), /*right=*/nullptr, shape[0], shape[1],
           /*end_tile=*/0});
    }
    step_products_(batch, current_stream(device));
  });
}

std::tuple<Tensor, Tensor, Tensor> one_step(const Tensor& x, const Tensor& weight_ih, const Tensor& bias_ih,
                                            const Tensor& state, const Tensor& weight_hh, const Tensor& bias_hh,
                                            const Tensor& reset, const OptionalTensor& output_mask,
                                            int64_t scored_width, bool bf16) {
  const auto dtype = state.scalar_type();
  check_kernel_dtype("step_gru", dtype);
  TORCH_CHECK_VALUE(x.dim() == 2 && state.dim() == 2, "x must be [B, I] and state [B, H], not ", x.sizes(), " and ",
                    state.sizes());
  const at::Device device = state.device();
  const int64_t lanes = state.size(0), hidden = state.size(1), input = x.size(1);
  TORCH_CHECK_VALUE(scored_width == 0 || scored_width > hidden, "scored_width=", scored_width,
                    ": must be 0 or more than the number of hidden units, ", hidden);
  TORCH_CHECK_VALUE(!bf16 || dtype == at::kFloat, "bf16=True needs float32 tensors, not ", dtype);
  const Tensor in = contiguous(x, "x", {lanes, input}, dtype, device);
  const Tensor w_ih = contiguous(weight_ih, "weight_ih", {3 * hidden, input}, dtype, device);
  const Tensor b_ih = contiguous(bias_ih, "bias_ih", {3 * hidden}, dtype, device);
  const Tensor saved = at::empty({1, lanes, 4 * hidden}, state.options());
  const GruArguments args(saved, 4, state, weight_hh, bias_hh, reset.unsqueeze(0),
                          output_mask.has_value() ? OptionalTensor(output_mask->unsqueeze(0)) : std::nullopt,
                          "reset_after");
  const DeviceGuard guard(device);
  const Tensor output = at::empty({lanes, hidden}, state.options());
  const Tensor scored = scored_width == 0 ? at::empty({0}, state.options())
                                          : at::empty({lanes, scored_width},
                                                      bf16 ? state.options().dtype(at::kBFloat16) : state.options());
  AT_DISPATCH_FLOATING_TYPES(dtype, "step_gru", [&] {
    using T = scalar_t;
    const GruForward<T> forward{args.layer<T>(),
                                /*gate_inputs=*/nullptr, output.mutable_data_ptr<T>(), saved.mutable_data_ptr<T>(),
                                /*product=*/nullptr,
                                /*product_n=*/nullptr};
    const bool is_written = scored_width > 0;
    launch_gru_one_step<T>({forward, in.const_data_ptr<T>(), w_ih.const_data_ptr<T>(), b_ih.const_data_ptr<T>(), input,
                            is_written && !bf16 ? scored.mutable_data_ptr<T>() : nullptr,
                            is_written && bf16 ? static_cast<uint16_t*>(scored.mutable_data_ptr()) : nullptr,
                            scored_width, /*wide_input=*/false, /*wide_state=*/false},
                           current_stream(device));
  });
  return {output, saved.squeeze(0), scored};
}

std::tuple<Tensor, Tensor, Tensor> one_step_backward(const Tensor& grad_output, const Tensor& saved,
                                                     const Tensor& state, const Tensor& reset,
                                                     const OptionalTensor& output_mask) {
  const auto dtype = state.scalar_type();
  check_kernel_dtype("step_gru_backward", dtype);
  TORCH_CHECK_VALUE(state.dim() == 2, "state must be [B, H], not ", state.sizes());
  const at::Device device = state.device();
  const int64_t lanes = state.size(0), hidden = state.size(1);
  const Tensor grad = contiguous(grad_output, "grad_output", {lanes, hidden}, dtype, device);
  const Tensor gates = contiguous(saved, "saved", {lanes, 4 * hidden}, dtype, device);
  const Tensor s = contiguous(state, "state", {lanes, hidden}, dtype, device);
  const Tensor r = contiguous(reset, "reset", {lanes}, at::kBool, device);
  const Tensor mask = contiguous(output_mask, "output_mask", {lanes, hidden}, dtype, device);
  const DeviceGuard guard(device);
  const Tensor grad_gate_inputs = at::empty({lanes, 3 * hidden}, state.options()),
               grad_recurrent = at::empty_like(grad_gate_inputs), prev_states = at::empty_like(s);
  AT_DISPATCH_FLOATING_TYPES(dtype, "step_gru_backward", [&] {
    using T = scalar_t;
    const GruLayer<T> layer{/*steps=*/1,
                            lanes,
                            hidden,
                            /*reset_after=*/true,
                            s.const_data_ptr<T>(),
                            /*weight=*/nullptr,
                            /*bias=*/nullptr,
                            r.const_data_ptr<bool>(),
                            data_or_null<T>(mask)};
    const GruBackward<T> backward{layer,
                                  grad.const_data_ptr<T>(),
                                  /*output=*/nullptr,
                                  gates.const_data_ptr<T>(),
                                  grad_gate_inputs.mutable_data_ptr<T>(),
                                  grad_recurrent.mutable_data_ptr<T>(),
                                  prev_states.mutable_data_ptr<T>(),
                                  /*grad_state=*/nullptr,
                                  /*grad_q=*/nullptr};
    launch_gru_step(backward, /*t=*/0, /*second_launch=*/false, current_stream(device));
  });
  return {grad_gate_inputs, grad_recurrent, prev_states};
}

std::tuple<Tensor, Tensor, Tensor> losses_of_step(const Tensor& hidden, const Tensor& rows, const Tensor& offsets,
                                                  const Tensor& live, const OptionalTensor& ids, std::string_view loss,
                                                  double batch_size, double elu_param, double bpreg,
                                                  double label_smoothing) {
  TORCH_CHECK_VALUE(hidden.dim() == 2 && rows.dim() == 2 && hidden.size(1) >= rows.size(1) &&
                        rows.size(0) >= hidden.size(0) && rows.size(0) < int64_t{1} << 31,
                    "hidden must be [B, >= H] and rows [B + N, H] with B + N < 2**31, not ", hidden.sizes(), " and ",
                    rows.sizes());
  TORCH_CHECK_VALUE(elu_param >= 0, "elu_param=", elu_param, ": must not be negative; 0 means no ELU");
  const auto dtype = hidden.scalar_type(), sum_dtype = dtype == at::kBFloat16 ? at::kFloat : dtype;
  TORCH_CHECK_VALUE(dtype == at::kFloat || dtype == at::kDouble || dtype == at::kBFloat16,
                    "step_loss: the kernel takes float32, float64 and bfloat16, not ", dtype);
  const at::Device device = hidden.device();
  const int64_t m = hidden.size(0), entries = rows.size(0), width = rows.size(1);
  LossTensors args{};
  args.hidden = hidden.contiguous();
  args.rows = contiguous(rows, "rows", {entries, width}, dtype, device);
  args.offsets = contiguous(offsets, "offsets", {entries}, sum_dtype, device);
  args.live = contiguous(live, "live", {m}, at::kBool, device);
  args.ids = contiguous(ids, "ids", {entries}, at::kLong, device);
  args.in_batch = true;
  const auto options = hidden.options().dtype(sum_dtype);
  LossResults results{at::empty({m}, options), at::empty({m, width}, options),
                      at::empty({entries, hidden.size(1)}, options), /*bias=*/Tensor()};
  sampled_loss(args, {loss_named(loss), elu_param, bpreg, label_smoothing, /*scale=*/1 / batch_size}, results);
  return {results.loss, results.hidden, results.rows};
}

void update_rows(const Tensor& weight, const Tensor& accumulator, const OptionalTensor& velocity,
                 const OptionalTensor& bias, const OptionalTensor& bias_accumulator,
                 const OptionalTensor& bias_velocity, const Tensor& rows, const Tensor& positions,
                 const Tensor& grad_inputs, const OptionalTensor& mask, const Tensor& grad_items, const Tensor& enabled,
                 const Tensor& hyperparameters) {
  const at::Device device = weight.device();
  const auto dtype = weight.scalar_type();
  check_kernel_dtype("step_rows_", dtype);
  TORCH_CHECK_VALUE(weight.dim() == 2 && grad_inputs.dim() == 2 && grad_items.dim() == 2,
                    "weight, grad_inputs and grad_items must have two dimensions, not ", weight.sizes(), ", ",
                    grad_inputs.sizes(), " and ", grad_items.sizes());
  TORCH_CHECK_VALUE(bias.has_value() == bias_accumulator.has_value(),
                    "bias and bias_accumulator go together: pass both, or None for each");
  const int64_t n_rows = weight.size(0), width = weight.size(1), item_width = grad_items.size(1);
  TORCH_CHECK_VALUE(item_width >= width + (bias.has_value() ? 1 : 0), "grad_items must have a column for each of the ",
                    width, " columns of weight and, with a bias, one more, not ", grad_items.sizes());
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
  const Tensor factors = contiguous(mask, "mask", {n_inputs, width}, dtype, device);
  const Tensor g_items = contiguous(grad_items, "grad_items", {n_items, item_width}, dtype, device);
  const Tensor update_flag = contiguous(enabled, "enabled", /*shape=*/{}, at::kBool, device);
  const Tensor adagrad_values = contiguous(hyperparameters, "hyperparameters", {3}, at::kDouble, device);
  const DeviceGuard guard(device);
  AT_DISPATCH_FLOATING_TYPES(dtype, "step_rows_", [&] {
    using T = scalar_t;
    step_rows_<T>({sorted.const_data_ptr<int64_t>(), order.const_data_ptr<int64_t>(), n, n_rows, width, n_inputs,
                   item_width, g_inputs.const_data_ptr<T>(), data_or_null<T>(factors), g_items.const_data_ptr<T>(),
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
  m.impl("step_products_", &products);
  m.impl("step_rows_", &update_rows);
  m.impl("step_gru", &one_step);
  m.impl("step_gru_backward", &one_step_backward);
  m.impl("step_loss", &losses_of_step);
}

}  // namespace
}  // namespace grf::cuda
