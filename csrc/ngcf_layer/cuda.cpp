// The NGCF layer on CUDA, forward and backward. Specification: gru4rec_fast/reference/ngcf_layer.py.
//
// The product with the graph's matrix by the kernels of laplacian, products with the weights by torch, and one pass
// over all rows before and after these. Kept for the backward pass are the sides and a byte per unit, as on the CPU;
// what the weights are multiplied by is made again. Rows and columns are checked on the device.
#include "ngcf_layer/cuda.h"

#include <ATen/Dispatch.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/sum.h>

#include <cmath>
#include <optional>
#include <string_view>
#include <tuple>

#include "common/checks.h"
#include "common/device.h"
#include "common/philox.h"
#include "laplacian/propagate.h"
#include "ngcf_layer/ngcf_layer.h"

namespace grf::cuda {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

constexpr int64_t kMaxLayers = philox::kStreamTriples - philox::kStreamMessageDropout;

// What forward and backward share of their arguments.
struct NgcfCall {
  at::Device device;
  Tensor features, weights;  // weights [2 in, out]: W1, and W2 below
  Tensor rows, columns;
  MatrixOf p, q;
  bool per_term;
  double slope, message_dropout, node_dropout;
  int64_t seed, step, layer, n_rows, in, width;

  NgcfCall(const Tensor& e, const Tensor& offsets, const OptionalTensor& r, const OptionalTensor& c, const Tensor& w1,
           const Tensor& w2, std::string_view P, std::string_view Q, bool apart, double negative_slope, double of_nodes,
           double of_messages, int64_t seed_, int64_t step_, int64_t number)
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
    check_float_or_double("ngcf_layer", e.scalar_type());
    TORCH_CHECK_VALUE(e.dim() == 2 && w1.dim() == 2, "features and weight_1 must be matrices");
    TORCH_CHECK_VALUE(message_dropout >= 0 && message_dropout < 1, "message_dropout=", message_dropout,
                      ": the probability of dropping must be in [0, 1)");
    TORCH_CHECK_VALUE(layer >= 0 && layer < kMaxLayers, "layer=", layer, ": must be in [0, ", kMaxLayers, ")");
    TORCH_CHECK_VALUE(r.has_value() || !c.has_value(), "columns: give rows too, which must be among them");
    in = e.size(1), width = w1.size(1);
    weights = at::cat({contiguous_on(device, w1, "weight_1", {in, width}, e.scalar_type()),
                       contiguous_on(device, w2, "weight_2", {in, width}, e.scalar_type())});
    rows = nodes_on(device, r, "rows"), columns = nodes_on(device, c, "columns");
    n_rows = rows.defined() ? rows.size(0) : offsets.size(0) - 1;
  }

  bool one_side() const { return p.name == q.name; }
  int n_terms() const { return per_term ? 2 : 1; }
  int64_t term_width() const { return per_term ? in : 2 * in; }  // of the inputs that a term is made of
  Tensor empty(at::IntArrayRef shape) const { return at::empty(shape, features.options()); }
  Propagation with(const MatrixOf& matrix, bool transposed) const {
    return {matrix.name, node_dropout, seed, step, transposed};
  }

  // Which of the features are a row's own; undefined: in order.
  Tensor own_at() const {
    if (!columns.defined()) return rows;
    Tensor found = at::empty_like(rows);
    find_rows(rows.const_data_ptr<int64_t>(), n_rows, columns.const_data_ptr<int64_t>(), columns.size(0),
              found.mutable_data_ptr<int64_t>(), current_stream(device));
    return found;
  }
  template <typename T>
  NgcfRows<T> rows_of(const Tensor& own, const Tensor& side_p, const Tensor& side_q) const {
    return {n_rows,
            in,
            features.const_data_ptr<T>(),
            data_or_null<int64_t>(own),
            side_p.const_data_ptr<T>(),
            (one_side() ? side_p : side_q).const_data_ptr<T>(),
            p.adds_identity,
            q.adds_identity};
  }
  template <typename T>
  NgcfUnits<T> units() const {
    return {n_rows, width, static_cast<T>(slope), static_cast<T>(1 / (1 - message_dropout))};
  }
  MessageDropout dropout() const {
    return {static_cast<uint32_t>(std::floor(message_dropout * 4294967296.0)),
            static_cast<uint32_t>(philox::kStreamMessageDropout + layer), static_cast<uint32_t>(step),
            static_cast<uint64_t>(seed), data_or_null<int64_t>(rows)};
  }
};

std::tuple<Tensor, Tensor, Tensor, Tensor> ngcf_layer(
    const Tensor& features, const Tensor& offsets, const Tensor& neighbours, const OptionalTensor& rows,
    const OptionalTensor& columns, const Tensor& weight_1, const Tensor& bias_1, const Tensor& weight_2,
    const Tensor& bias_2, std::string_view P, std::string_view Q, bool per_term, double negative_slope,
    double node_dropout, double message_dropout, int64_t seed, int64_t step, int64_t layer) {
  const DeviceGuard guard(features.device());
  const at::AutoDispatchBelowADInplaceOrView no_autograd;
  const NgcfCall call(features, offsets, rows, columns, weight_1, weight_2, P, Q, per_term, negative_slope,
                      node_dropout, message_dropout, seed, step, layer);
  const auto dtype = features.scalar_type();
  const Tensor b1 = contiguous_on(call.device, bias_1, "bias_1", {call.width}, dtype);
  const Tensor b2 = contiguous_on(call.device, bias_2, "bias_2", {call.width}, dtype);
  const GraphPart graph{offsets, neighbours, rows, columns};
  const Tensor side_p = propagate(call.features, graph, call.with(call.p, false));
  const Tensor side_q = call.one_side() ? call.empty({0}) : propagate(call.features, graph, call.with(call.q, false));
  const Tensor own = call.own_at();
  const cudaStream_t stream = current_stream(call.device);
  Tensor inputs = call.empty({call.n_rows, 2 * call.in}), out = call.empty({call.n_rows, call.width});
  Tensor second = per_term ? at::empty_like(out) : Tensor();
  const Tensor code = at::empty({call.n_rows, call.width}, features.options().dtype(at::kByte));
  AT_DISPATCH_FLOATING_TYPES(dtype, "ngcf_layer", [&] {
    combine_sides(call.rows_of<scalar_t>(own, side_p, side_q), inputs.mutable_data_ptr<scalar_t>(), stream);
    for (int term = 0; term < call.n_terms(); ++term) {
      const int64_t from = term * call.in, n = call.term_width();
      at::mm_out(term == 0 ? out : second, inputs.narrow(1, from, n), call.weights.narrow(0, from, n));
    }
    const NgcfSums<scalar_t> sums{b1.const_data_ptr<scalar_t>(), b2.const_data_ptr<scalar_t>(),
                                  data_or_null<scalar_t>(second), out.mutable_data_ptr<scalar_t>(),
                                  code.mutable_data_ptr<uint8_t>()};
    activate_units(call.units<scalar_t>(), call.dropout(), sums, stream);
  });
  return {out, side_p, side_q, code};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> ngcf_layer_backward(
    const Tensor& grad_out, const Tensor& features, const Tensor& offsets, const Tensor& neighbours,
    const OptionalTensor& rows, const OptionalTensor& columns, const Tensor& weight_1, const Tensor& weight_2,
    const Tensor& side_p, const Tensor& side_q, const Tensor& code, std::string_view P, std::string_view Q,
    bool per_term, double negative_slope, double node_dropout, double message_dropout, int64_t seed, int64_t step,
    int64_t layer) {
  const DeviceGuard guard(features.device());
  const at::AutoDispatchBelowADInplaceOrView no_autograd;
  const NgcfCall call(features, offsets, rows, columns, weight_1, weight_2, P, Q, per_term, negative_slope,
                      node_dropout, message_dropout, seed, step, layer);
  const int64_t n_rows = call.n_rows, in = call.in, width = call.width;
  const auto dtype = features.scalar_type();
  const Tensor g = contiguous_on(call.device, grad_out, "grad_out", {n_rows, width}, dtype);
  const Tensor p = contiguous_on(call.device, side_p, "side_p", {n_rows, in}, dtype);
  const Tensor q = call.one_side() ? side_q : contiguous_on(call.device, side_q, "side_q", {n_rows, in}, dtype);
  const Tensor bits = contiguous_on(call.device, code, "code", {n_rows, width}, at::kByte);
  const Tensor own = call.own_at();
  const cudaStream_t stream = current_stream(call.device);
  Tensor before = call.empty({call.n_terms(), n_rows, width}), inputs = call.empty({n_rows, 2 * in});
  Tensor grad_weights = call.empty({2 * in, width});
  const Tensor grad_p = at::empty_like(p), grad_own = at::empty_like(p);
  const Tensor grad_q = call.one_side() ? Tensor() : at::empty_like(p);
  AT_DISPATCH_FLOATING_TYPES(dtype, "ngcf_layer_backward", [&] {
    const auto rows_of = call.rows_of<scalar_t>(own, p, q);
    unactivate_units(call.units<scalar_t>(), g.const_data_ptr<scalar_t>(), bits.const_data_ptr<uint8_t>(),
                     before.mutable_data_ptr<scalar_t>(),
                     per_term ? before.mutable_data_ptr<scalar_t>() + n_rows * width : nullptr, stream);
    combine_sides(rows_of, inputs.mutable_data_ptr<scalar_t>(), stream);
    for (int term = 0; term < call.n_terms(); ++term) {
      const int64_t from = term * in, n = call.term_width();
      Tensor of_inputs = inputs.narrow(1, from, n), of_weights = grad_weights.narrow(0, from, n);
      at::mm_out(of_weights, of_inputs.t(), before[term]);
      at::mm_out(of_inputs, before[term], call.weights.narrow(0, from, n).t());  // in place of what it is a gradient of
    }
    separate_gradients(rows_of, inputs.const_data_ptr<scalar_t>(), grad_p.mutable_data_ptr<scalar_t>(),
                       call.one_side() ? nullptr : grad_q.mutable_data_ptr<scalar_t>(),
                       grad_own.mutable_data_ptr<scalar_t>(), stream);
  });
  const GraphPart graph = GraphPart{offsets, neighbours, rows, columns}.transposed();
  Tensor grad_features = propagate(grad_p, graph, call.with(call.p, true), grad_own);
  if (!call.one_side()) grad_features.add_(propagate(grad_q, graph, call.with(call.q, true)));
  const Tensor grad_bias = at::sum(before[0], 0);  // in one sum, both biases have one gradient
  return {grad_features, grad_weights.narrow(0, 0, in).clone(), grad_bias, grad_weights.narrow(0, in, in).clone(),
          per_term ? at::sum(before[1], 0) : grad_bias.clone()};
}

GRF_DEVICE_IMPL(m) {
  m.impl("ngcf_layer", &ngcf_layer);
  m.impl("ngcf_layer_backward", &ngcf_layer_backward);
}

}  // namespace
}  // namespace grf::cuda
