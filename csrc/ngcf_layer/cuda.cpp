// The NGCF layer on CUDA, forward and backward. Specification: gru4rec_fast/ops/ngcf_layer.py.
//
// laplacian_propagation multiplies by the graph's matrices, which gives the propagated features. torch multiplies by
// the weights. The kernels of cuda.cu do the element-wise operations before and after these products. The forward pass
// saves the propagated features and a byte of flags per unit; the backward pass recomputes the inputs of the weights.
// The kernels check the values of rows and columns.
#include <ATen/Dispatch.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/sum.h>

#include "common/device.h"
#include "ngcf_layer/arguments.h"

namespace grf::cuda {

using at::Tensor;

void find_rows(const NgcfArguments& args, Tensor& self_index) {
  const DeviceGuard guard(args.device);
  find_rows(args.rows.const_data_ptr<int64_t>(), args.n_rows, args.columns.const_data_ptr<int64_t>(),
            args.columns.size(0), self_index.mutable_data_ptr<int64_t>(), current_stream(args.device));
}

void ngcf_forward(const NgcfArguments& args, const NgcfPropagated& propagated, const Tensor& bias_1,
                  const Tensor& bias_2, Tensor& out, Tensor& flags) {
  const DeviceGuard guard(args.device);
  const at::AutoDispatchBelowADInplaceOrView no_autograd;
  const cudaStream_t stream = current_stream(args.device);
  Tensor inputs = args.empty({args.n_rows, 2 * args.n_in});
  Tensor product_2 = args.per_term ? at::empty_like(out) : Tensor();
  AT_DISPATCH_FLOATING_TYPES(args.features.scalar_type(), "ngcf_layer", [&] {
    const auto layer = args.layer<scalar_t>(propagated);
    make_inputs(layer.rows, inputs.mutable_data_ptr<scalar_t>(), stream);
    for (int product = 0; product < args.n_products(); ++product) {
      const int64_t first_column = product * args.n_in, n_columns = args.product_width();
      at::mm_out(product == 0 ? out : product_2, inputs.narrow(1, first_column, n_columns),
                 args.weights.narrow(0, first_column, n_columns));
    }
    const ActivationOperands<scalar_t> operands{bias_1.const_data_ptr<scalar_t>(), bias_2.const_data_ptr<scalar_t>(),
                                                data_or_null<scalar_t>(product_2), out.mutable_data_ptr<scalar_t>(),
                                                flags.mutable_data_ptr<uint8_t>()};
    activate(layer.units, layer.dropout, operands, stream);
  });
}

void ngcf_backward(const NgcfArguments& args, const NgcfPropagated& propagated, const Tensor& grad_out,
                   const Tensor& flags, NgcfGradientTensors& grads) {
  const DeviceGuard guard(args.device);
  const at::AutoDispatchBelowADInplaceOrView no_autograd;
  const cudaStream_t stream = current_stream(args.device);
  const int64_t n_rows = args.n_rows, n_in = args.n_in, n_out = args.n_out;
  Tensor grad_sums = args.empty({args.n_products(), n_rows, n_out}), inputs = args.empty({n_rows, 2 * n_in});
  AT_DISPATCH_FLOATING_TYPES(args.features.scalar_type(), "ngcf_layer_backward", [&] {
    const auto layer = args.layer<scalar_t>(propagated);
    auto* const grad_sum_1 = grad_sums.mutable_data_ptr<scalar_t>();
    activate_backward(layer.units, grad_out.const_data_ptr<scalar_t>(), flags.const_data_ptr<uint8_t>(), grad_sum_1,
                      args.per_term ? grad_sum_1 + n_rows * n_out : nullptr, stream);
    make_inputs(layer.rows, inputs.mutable_data_ptr<scalar_t>(), stream);
    for (int product = 0; product < args.n_products(); ++product) {
      const int64_t first_column = product * n_in, n_columns = args.product_width();
      Tensor product_inputs = inputs.narrow(1, first_column, n_columns);
      Tensor grad_weights = grads.weights.narrow(0, first_column, n_columns);
      at::mm_out(grad_weights, product_inputs.t(), grad_sums[product]);
      // The gradient of the inputs overwrites the inputs, which nothing reads again.
      at::mm_out(product_inputs, grad_sums[product], args.weights.narrow(0, first_column, n_columns).t());
    }
    make_inputs_backward(layer.rows, inputs.const_data_ptr<scalar_t>(), grads.propagated_p.mutable_data_ptr<scalar_t>(),
                         mutable_data_or_null<scalar_t>(grads.propagated_q),
                         grads.self_features.mutable_data_ptr<scalar_t>(), stream);
  });
  at::sum_out(grads.bias_1, grad_sums[0], /*dim=*/0);
  if (args.per_term) {
    at::sum_out(grads.bias_2, grad_sums[1], /*dim=*/0);
  } else {
    grads.bias_2.copy_(grads.bias_1);  // both biases are added to the same sum
  }
}

}  // namespace grf::cuda
