// The operators of the NGCF layer. Specification: gru4rec_fast/ops/ngcf_layer.py.
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

constexpr int64_t kMaxLayers = philox::kStreamTriples - philox::kStreamMessageDropout;

NgcfCall::NgcfCall(const Tensor& e, const Tensor& offsets, const OptionalTensor& r, const OptionalTensor& c,
                   const Tensor& w1, const Tensor& w2, std::string_view P, std::string_view Q, bool apart,
                   double negative_slope, double of_nodes, double of_messages, int64_t seed_, int64_t step_,
                   int64_t number)
    : device(e.device()),
      features(e.contiguous()),
      p(P),
      q(Q),
      per_term(apart),
      slope(negative_slope),
      message_dropout(of_messages),
      node_dropout(of_nodes),
      seed(seed_),
      step(step_),
      layer(number) {
  check_counters(seed, step, 1);
  check_kernel_dtype("ngcf_layer", e.scalar_type());
  TORCH_CHECK_VALUE(e.dim() == 2 && w1.dim() == 2, "features and weight_1 must be matrices");
  TORCH_CHECK_VALUE(message_dropout >= 0 && message_dropout < 1, "message_dropout=", message_dropout,
                    ": the probability of dropping must be in [0, 1)");
  TORCH_CHECK_VALUE(layer >= 0 && layer < kMaxLayers, "layer=", layer, ": must be in [0, ", kMaxLayers, ")");
  TORCH_CHECK_VALUE(r.has_value() || !c.has_value(), "columns: give rows too, which must be among them");
  in = e.size(1), width = w1.size(1);
  weights = at::cat({contiguous(w1, "weight_1", {in, width}, e.scalar_type(), device),
                     contiguous(w2, "weight_2", {in, width}, e.scalar_type(), device)});
  rows = nodes_on(device, r, "rows"), columns = nodes_on(device, c, "columns");
  n_rows = rows.defined() ? rows.size(0) : offsets.size(0) - 1;
}

MessageDropout NgcfCall::dropout() const {
  return {philox::drop_threshold(message_dropout), static_cast<uint32_t>(philox::kStreamMessageDropout + layer),
          static_cast<uint32_t>(step), static_cast<uint64_t>(seed), data_or_null<int64_t>(rows)};
}

namespace {

// Where the rows stand among the columns, both of which rise.
void find_rows(const NgcfCall& call, Tensor& own_at) {
  const int64_t *row = call.rows.const_data_ptr<int64_t>(), *column = call.columns.const_data_ptr<int64_t>();
  auto* found = own_at.mutable_data_ptr<int64_t>();
  const int64_t n_columns = call.columns.size(0);
  for (int64_t i = 0, j = 0; i < call.n_rows; ++i) {
    while (j < n_columns && column[j] < row[i]) ++j;
    TORCH_CHECK_VALUE(j < n_columns && column[j] == row[i], "rows: node ", row[i], " is not among the columns");
    found[i] = j;
  }
}

// Which of the features are a row's own; undefined: in order. After `propagate` has found rows and columns to rise.
template <Kernels kernels>
Tensor own_at(const NgcfCall& call) {
  if (!call.columns.defined()) return call.rows;
  Tensor found = at::empty_like(call.rows);
  if constexpr (kernels == Kernels::cuda) {
    cuda::find_rows(call, found);
  } else {
    find_rows(call, found);
  }
  return found;
}

template <Kernels kernels>
std::tuple<Tensor, Tensor, Tensor, Tensor> ngcf_layer(
    const Tensor& features, const Tensor& offsets, const Tensor& neighbors, const OptionalTensor& rows,
    const OptionalTensor& columns, const Tensor& weight_1, const Tensor& bias_1, const Tensor& weight_2,
    const Tensor& bias_2, std::string_view P, std::string_view Q, bool per_term, double negative_slope,
    double node_dropout, double message_dropout, int64_t seed, int64_t step, int64_t layer) {
  const NgcfCall call(features, offsets, rows, columns, weight_1, weight_2, P, Q, per_term, negative_slope,
                      node_dropout, message_dropout, seed, step, layer);
  const auto dtype = features.scalar_type();
  const Tensor b1 = contiguous(bias_1, "bias_1", {call.width}, dtype, call.device);
  const Tensor b2 = contiguous(bias_2, "bias_2", {call.width}, dtype, call.device);
  const GraphPart graph{offsets, neighbors, rows, columns};
  NgcfSides sides;
  sides.p = propagate<kernels>(call.features, graph, call.with(call.p, false));
  sides.q = call.one_side() ? call.empty({0}) : propagate<kernels>(call.features, graph, call.with(call.q, false));
  sides.own_at = own_at<kernels>(call);
  Tensor out = call.empty({call.n_rows, call.width});
  Tensor code = at::empty({call.n_rows, call.width}, features.options().dtype(at::kByte));
  if constexpr (kernels == Kernels::cuda) {
    cuda::ngcf_forward(call, sides, b1, b2, out, code);
  } else {
    const Tensor bias = per_term ? at::cat({b1, b2}) : b1.add(b2);
    AT_DISPATCH_FLOATING_TYPES(dtype, "ngcf_layer", [&] {
      ngcf_forward(call.of<scalar_t>(sides), call.weights.const_data_ptr<scalar_t>(), bias.const_data_ptr<scalar_t>(),
                   per_term, out.mutable_data_ptr<scalar_t>(), code.mutable_data_ptr<uint8_t>());
    });
  }
  return {out, sides.p, sides.q, code};
}

template <Kernels kernels>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> ngcf_layer_backward(
    const Tensor& grad_out, const Tensor& features, const Tensor& offsets, const Tensor& neighbors,
    const OptionalTensor& rows, const OptionalTensor& columns, const Tensor& weight_1, const Tensor& weight_2,
    const Tensor& side_p, const Tensor& side_q, const Tensor& code, std::string_view P, std::string_view Q,
    bool per_term, double negative_slope, double node_dropout, double message_dropout, int64_t seed, int64_t step,
    int64_t layer) {
  const NgcfCall call(features, offsets, rows, columns, weight_1, weight_2, P, Q, per_term, negative_slope,
                      node_dropout, message_dropout, seed, step, layer);
  const int64_t n_rows = call.n_rows, in = call.in, width = call.width;
  const auto dtype = features.scalar_type();
  const Tensor g = contiguous(grad_out, "grad_out", {n_rows, width}, dtype, call.device);
  const NgcfSides sides{contiguous(side_p, "side_p", {n_rows, in}, dtype, call.device),
                        call.one_side() ? side_q : contiguous(side_q, "side_q", {n_rows, in}, dtype, call.device),
                        own_at<kernels>(call)};
  const Tensor bits = contiguous(code, "code", {n_rows, width}, at::kByte, call.device);
  NgcfGradientTensors grads{at::empty_like(sides.p), call.one_side() ? Tensor() : at::empty_like(sides.p),
                            at::empty_like(sides.p), call.empty({2 * in, width}),
                            call.empty({width}),     call.empty({width})};
  if constexpr (kernels == Kernels::cuda) {
    cuda::ngcf_backward(call, sides, g, bits, grads);
  } else {
    const Tensor transposed = call.weights.t().contiguous();
    AT_DISPATCH_FLOATING_TYPES(dtype, "ngcf_layer_backward", [&] {
      const NgcfGradients<scalar_t> to{
          grads.p.mutable_data_ptr<scalar_t>(),      mutable_data_or_null<scalar_t>(grads.q),
          grads.own.mutable_data_ptr<scalar_t>(),    grads.weights.mutable_data_ptr<scalar_t>(),
          grads.bias_1.mutable_data_ptr<scalar_t>(), grads.bias_2.mutable_data_ptr<scalar_t>()};
      ngcf_backward(call.of<scalar_t>(sides), transposed.const_data_ptr<scalar_t>(), per_term,
                    g.const_data_ptr<scalar_t>(), bits.const_data_ptr<uint8_t>(), to);
    });
  }
  const GraphPart graph = GraphPart{offsets, neighbors, rows, columns}.transposed();
  Tensor grad_features = propagate<kernels>(grads.p, graph, call.with(call.p, true), grads.own);
  if (!call.one_side()) grad_features.add_(propagate<kernels>(grads.q, graph, call.with(call.q, true)));
  return {grad_features, grads.weights.narrow(0, 0, in).clone(), grads.bias_1, grads.weights.narrow(0, in, in).clone(),
          grads.bias_2};
}

template <Kernels kernels>
void implement(torch::Library& m) {
  m.impl("ngcf_layer", &ngcf_layer<kernels>);
  m.impl("ngcf_layer_backward", &ngcf_layer_backward<kernels>);
}
GRF_REGISTER(implement)

}  // namespace
}  // namespace grf
