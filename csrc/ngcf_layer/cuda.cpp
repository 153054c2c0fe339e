// The NGCF layer on CUDA, forward and backward. Specification: gru4rec_fast/ops/ngcf_layer.py.
//
// The product with the graph's matrix by the kernels of laplacian_propagation, products with the weights by torch, and one pass
// over all rows before and after these. Kept for the backward pass are the sides and a byte per unit, as on the CPU;
// what the weights are multiplied by is made again. Rows and columns are checked on the device.
#include <ATen/Dispatch.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/sum.h>

#include "common/device.h"
#include "ngcf_layer/arguments.h"

namespace grf::cuda {

using at::Tensor;

void find_rows(const NgcfCall& call, Tensor& own_at) {
  const DeviceGuard guard(call.device);
  find_rows(call.rows.const_data_ptr<int64_t>(), call.n_rows, call.columns.const_data_ptr<int64_t>(),
            call.columns.size(0), own_at.mutable_data_ptr<int64_t>(), current_stream(call.device));
}

void ngcf_forward(const NgcfCall& call, const NgcfSides& sides, const Tensor& bias_1, const Tensor& bias_2, Tensor& out,
                  Tensor& code) {
  const DeviceGuard guard(call.device);
  const at::AutoDispatchBelowADInplaceOrView no_autograd;
  const cudaStream_t stream = current_stream(call.device);
  Tensor inputs = call.empty({call.n_rows, 2 * call.in});
  Tensor second = call.per_term ? at::empty_like(out) : Tensor();
  AT_DISPATCH_FLOATING_TYPES(call.features.scalar_type(), "ngcf_layer", [&] {
    const auto layer = call.of<scalar_t>(sides);
    combine_sides(layer.rows, inputs.mutable_data_ptr<scalar_t>(), stream);
    for (int term = 0; term < call.n_terms(); ++term) {
      const int64_t from = term * call.in, n = call.term_width();
      at::mm_out(term == 0 ? out : second, inputs.narrow(1, from, n), call.weights.narrow(0, from, n));
    }
    const NgcfSums<scalar_t> sums{bias_1.const_data_ptr<scalar_t>(), bias_2.const_data_ptr<scalar_t>(),
                                  data_or_null<scalar_t>(second), out.mutable_data_ptr<scalar_t>(),
                                  code.mutable_data_ptr<uint8_t>()};
    activate_units(layer.units, layer.dropout, sums, stream);
  });
}

void ngcf_backward(const NgcfCall& call, const NgcfSides& sides, const Tensor& grad_out, const Tensor& code,
                   NgcfGradientTensors& grads) {
  const DeviceGuard guard(call.device);
  const at::AutoDispatchBelowADInplaceOrView no_autograd;
  const cudaStream_t stream = current_stream(call.device);
  const int64_t n_rows = call.n_rows, in = call.in, width = call.width;
  Tensor before = call.empty({call.n_terms(), n_rows, width}), inputs = call.empty({n_rows, 2 * in});
  AT_DISPATCH_FLOATING_TYPES(call.features.scalar_type(), "ngcf_layer_backward", [&] {
    const auto layer = call.of<scalar_t>(sides);
    auto* const first = before.mutable_data_ptr<scalar_t>();
    unactivate_units(layer.units, grad_out.const_data_ptr<scalar_t>(), code.const_data_ptr<uint8_t>(), first,
                     call.per_term ? first + n_rows * width : nullptr, stream);
    combine_sides(layer.rows, inputs.mutable_data_ptr<scalar_t>(), stream);
    for (int term = 0; term < call.n_terms(); ++term) {
      const int64_t from = term * in, n = call.term_width();
      Tensor of_inputs = inputs.narrow(1, from, n), of_weights = grads.weights.narrow(0, from, n);
      at::mm_out(of_weights, of_inputs.t(), before[term]);
      at::mm_out(of_inputs, before[term], call.weights.narrow(0, from, n).t());  // in place of what it is a gradient of
    }
    separate_gradients(layer.rows, inputs.const_data_ptr<scalar_t>(), grads.p.mutable_data_ptr<scalar_t>(),
                       mutable_data_or_null<scalar_t>(grads.q), grads.own.mutable_data_ptr<scalar_t>(), stream);
  });
  at::sum_out(grads.bias_1, before[0], 0);
  if (call.per_term) {
    at::sum_out(grads.bias_2, before[1], 0);
  } else {
    grads.bias_2.copy_(grads.bias_1);  // in one sum, both biases have one gradient
  }
}

}  // namespace grf::cuda
