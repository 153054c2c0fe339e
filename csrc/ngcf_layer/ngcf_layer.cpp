// The operators ngcf_layer and ngcf_layer_backward: check arguments and allocate results. Specification:
// gru4rec_fast/ops/ngcf_layer.py.
//
// Arguments of the operators whose names do not explain them:
//   P, Q            names of the two propagation matrices, such as "symmetric+I"
//   per_term        whether the activation is applied to each of the layer's two terms, and not to their sum
//   propagated_p    P @ features from the forward pass, without "+I"
//   propagated_q    Q @ features from the forward pass, without "+I"; empty if both matrices are the same
//   flags           bits that the forward pass stores for each unit, from which the backward pass computes the gradient
//                   of the activation (see ngcf_layer.h)
#include "ngcf_layer/ngcf_layer.h"

#include <ATen/Dispatch.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty_like.h>

#include <tuple>

#include "common/checks.h"
#include "common/philox.h"
#include "ngcf_layer/arguments.h"

namespace grf {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

// Layer l uses the Philox stream kStreamMessageDropout + l, which must stay below the next stream in use.
constexpr int64_t kMaxLayers = philox::kStreamTriples - philox::kStreamMessageDropout;

NgcfArguments::NgcfArguments(const Tensor& features_, const Tensor& offsets, const OptionalTensor& rows_,
                             const OptionalTensor& columns_, const Tensor& weight_1, const Tensor& weight_2,
                             std::string_view P, std::string_view Q, bool per_term_, double negative_slope,
                             double node_dropout_, double message_dropout_, int64_t seed_, const FirstStep& step_,
                             int64_t layer_index_)
    : device(features_.device()),
      features(features_.contiguous()),
      p(P),
      q(Q),
      per_term(per_term_),
      slope(negative_slope),
      message_dropout(message_dropout_),
      node_dropout(node_dropout_),
      seed(seed_),
      step(step_),
      layer_index(layer_index_) {
  check_kernel_dtype("ngcf_layer", features.scalar_type());
  TORCH_CHECK_VALUE(features.dim() == 2 && weight_1.dim() == 2,
                    "features and weight_1 must be matrices, not of shapes ", features.sizes(), " and ",
                    weight_1.sizes());
  TORCH_CHECK_VALUE(message_dropout >= 0 && message_dropout < 1, "message_dropout=", message_dropout,
                    ": the probability of dropping must be in [0, 1)");
  TORCH_CHECK_VALUE(layer_index >= 0 && layer_index < kMaxLayers, "layer=", layer_index, ": must be in [0, ",
                    kMaxLayers, ")");
  TORCH_CHECK_VALUE(rows_.has_value() || !columns_.has_value(), "columns: also give rows; every row must be a column");
  TORCH_CHECK_VALUE(offsets.dim() == 1 && offsets.size(0) >= 1, "offsets must be [n_nodes + 1], not ", offsets.sizes());
  n_in = features.size(1), n_out = weight_1.size(1);
  weights = at::cat({contiguous(weight_1, "weight_1", {n_in, n_out}, features.scalar_type(), device),
                     contiguous(weight_2, "weight_2", {n_in, n_out}, features.scalar_type(), device)});
  rows = contiguous_nodes(device, rows_, "rows"), columns = contiguous_nodes(device, columns_, "columns");
  const int64_t n_nodes = offsets.size(0) - 1;
  n_rows = rows.defined() ? rows.size(0) : n_nodes;
  TORCH_CHECK_VALUE(features.size(0) == (columns.defined() ? columns.size(0) : n_nodes), "features has ",
                    features.size(0), " rows, not one for each of the ", columns.defined() ? columns.size(0) : n_nodes,
                    columns.defined() ? " columns" : " nodes");
}

MessageDropout NgcfArguments::dropout() const {
  return {philox::drop_threshold(message_dropout),
          static_cast<uint32_t>(philox::kStreamMessageDropout + layer_index),
          static_cast<uint32_t>(step.number),
          static_cast<uint64_t>(seed),
          data_or_null<int64_t>(rows),
          step.counter};
}

namespace {

// Writes the index in `columns` of each element of `rows` to self_index. `rows` and `columns` are increasing, so one
// pass finds all indices.
void find_rows(const NgcfArguments& args, Tensor& self_index) {
  const int64_t *row = args.rows.const_data_ptr<int64_t>(), *column = args.columns.const_data_ptr<int64_t>();
  auto* index = self_index.mutable_data_ptr<int64_t>();
  const int64_t n_columns = args.columns.size(0);
  for (int64_t i = 0, j = 0; i < args.n_rows; ++i) {
    while (j < n_columns && column[j] < row[i]) ++j;
    TORCH_CHECK_VALUE(j < n_columns && column[j] == row[i], "rows: node ", row[i], " is not among the columns");
    index[i] = j;
  }
}

// Returns, for each row of the result, the index in `features` of the same node. Returns an undefined tensor if the
// index of every row i is i.
template <Kernels kernels>
Tensor make_self_index(const NgcfArguments& args) {
  if (!args.columns.defined()) return args.rows;
  Tensor self_index = at::empty_like(args.rows);
  if constexpr (kernels == Kernels::cuda) {
    cuda::find_rows(args, self_index);
  } else {
    find_rows(args, self_index);
  }
  return self_index;
}

template <Kernels kernels>
std::tuple<Tensor, Tensor, Tensor, Tensor> ngcf_layer(const Tensor& features, const Tensor& offsets,
                                                      const Tensor& neighbors, const OptionalTensor& rows,
                                                      const OptionalTensor& columns, const Tensor& weight_1,
                                                      const Tensor& bias_1, const Tensor& weight_2,
                                                      const Tensor& bias_2, std::string_view P, std::string_view Q,
                                                      bool per_term, double negative_slope, double node_dropout,
                                                      double message_dropout, int64_t seed, int64_t step,
                                                      const OptionalTensor& counter, int64_t layer) {
  check_counters(seed, step, /*steps=*/1);
  const FirstStep first = first_step<kernels>(step, counter, /*steps=*/1, features.device());
  const NgcfArguments args(features, offsets, rows, columns, weight_1, weight_2, P, Q, per_term, negative_slope,
                           node_dropout, message_dropout, seed, first, layer);
  const auto dtype = features.scalar_type();
  const Tensor b1 = contiguous(bias_1, "bias_1", {args.n_out}, dtype, args.device);
  const Tensor b2 = contiguous(bias_2, "bias_2", {args.n_out}, dtype, args.device);
  const Submatrix graph{offsets, neighbors, rows, columns};
  NgcfPropagated propagated;
  const auto multiply_by = [&](const NgcfMatrix& matrix) {
    return propagate<kernels>(args.features, graph, args.propagation(matrix, /*transposed=*/false));
  };
  propagated.p = multiply_by(args.p);
  propagated.q = args.shares_matrix() ? args.empty({0}) : multiply_by(args.q);
  propagated.self_index = make_self_index<kernels>(args);
  Tensor out = args.empty({args.n_rows, args.n_out});
  Tensor flags = at::empty({args.n_rows, args.n_out}, features.options().dtype(at::kByte));
  if constexpr (kernels == Kernels::cuda) {
    cuda::ngcf_forward(args, propagated, b1, b2, out, flags);
  } else {
    const Tensor bias = per_term ? at::cat({b1, b2}) : b1.add(b2);
    AT_DISPATCH_FLOATING_TYPES(dtype, "ngcf_layer", [&] {
      ngcf_forward(args.layer<scalar_t>(propagated), args.weights.const_data_ptr<scalar_t>(),
                   bias.const_data_ptr<scalar_t>(), per_term, out.mutable_data_ptr<scalar_t>(),
                   flags.mutable_data_ptr<uint8_t>());
    });
  }
  return {out, propagated.p, propagated.q, flags};
}

template <Kernels kernels>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> ngcf_layer_backward(
    const Tensor& grad_out, const Tensor& features, const Tensor& offsets, const Tensor& neighbors,
    const OptionalTensor& rows, const OptionalTensor& columns, const Tensor& weight_1, const Tensor& weight_2,
    const Tensor& propagated_p, const Tensor& propagated_q, const Tensor& flag_bytes, std::string_view P,
    std::string_view Q, bool per_term, double negative_slope, double node_dropout, double message_dropout, int64_t seed,
    int64_t step, const OptionalTensor& counter, int64_t layer) {
  check_counters(seed, step, /*steps=*/1);
  const FirstStep first = first_step<kernels>(step, counter, /*steps=*/1, features.device());
  const NgcfArguments args(features, offsets, rows, columns, weight_1, weight_2, P, Q, per_term, negative_slope,
                           node_dropout, message_dropout, seed, first, layer);
  const int64_t n_rows = args.n_rows, n_in = args.n_in, n_out = args.n_out;
  const auto dtype = features.scalar_type();
  const Tensor grad = contiguous(grad_out, "grad_out", {n_rows, n_out}, dtype, args.device);
  if constexpr (kernels == Kernels::cpu) {  // in the forward pass, `propagate` checks them before they are used
    check_nodes("rows", args.rows, offsets.size(0) - 1);
    check_nodes("columns", args.columns, offsets.size(0) - 1);
  }
  const NgcfPropagated propagated{contiguous(propagated_p, "propagated_p", {n_rows, n_in}, dtype, args.device),
                                  args.shares_matrix()
                                      ? propagated_q
                                      : contiguous(propagated_q, "propagated_q", {n_rows, n_in}, dtype, args.device),
                                  make_self_index<kernels>(args)};
  const Tensor flags = contiguous(flag_bytes, "flags", {n_rows, n_out}, at::kByte, args.device);
  NgcfGradientTensors grads{.propagated_p = at::empty_like(propagated.p),
                            .propagated_q = args.shares_matrix() ? Tensor() : at::empty_like(propagated.p),
                            .self_features = at::empty_like(propagated.p),
                            .weights = args.empty({2 * n_in, n_out}),
                            .bias_1 = args.empty({n_out}),
                            .bias_2 = args.empty({n_out})};
  if constexpr (kernels == Kernels::cuda) {
    cuda::ngcf_backward(args, propagated, grad, flags, grads);
  } else {
    const Tensor transposed_weights = args.weights.t().contiguous();
    AT_DISPATCH_FLOATING_TYPES(dtype, "ngcf_layer_backward", [&] {
      const NgcfGradients<scalar_t> pointers{.propagated_p = grads.propagated_p.mutable_data_ptr<scalar_t>(),
                                             .propagated_q = mutable_data_or_null<scalar_t>(grads.propagated_q),
                                             .self_features = grads.self_features.mutable_data_ptr<scalar_t>(),
                                             .weights = grads.weights.mutable_data_ptr<scalar_t>(),
                                             .bias_1 = grads.bias_1.mutable_data_ptr<scalar_t>(),
                                             .bias_2 = grads.bias_2.mutable_data_ptr<scalar_t>()};
      ngcf_backward(args.layer<scalar_t>(propagated), transposed_weights.const_data_ptr<scalar_t>(), per_term,
                    grad.const_data_ptr<scalar_t>(), flags.const_data_ptr<uint8_t>(), pointers);
    });
  }
  const Submatrix graph = Submatrix{offsets, neighbors, rows, columns}.transposed();
  Tensor grad_features = propagate<kernels>(grads.propagated_p, graph, args.propagation(args.p, /*transposed=*/true),
                                            /*addend=*/grads.self_features);
  if (!args.shares_matrix()) {
    grad_features.add_(propagate<kernels>(grads.propagated_q, graph, args.propagation(args.q, /*transposed=*/true)));
  }
  return {grad_features, grads.weights.narrow(0, 0, n_in).clone(), grads.bias_1,
          grads.weights.narrow(0, n_in, n_in).clone(), grads.bias_2};
}

GRF_REGISTER(ngcf_layer)
GRF_REGISTER(ngcf_layer_backward)

}  // namespace
}  // namespace grf
