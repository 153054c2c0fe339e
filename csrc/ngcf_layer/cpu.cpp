// The NGCF layer on the CPU, forward and backward. Specification: gru4rec_fast/reference/ngcf_layer.py.
//
// After the product with the graph's matrix (laplacian/cpu.h), rows are taken a block at a time, which stays in the
// cache from what the weights are multiplied by to E', and in the backward pass from the gradient of E' to those of the
// sides. Kept for the backward pass are the sides and a byte per unit; what the weights were multiplied by is made
// again. Gradients of the weights are summed within parts that are cut by shape alone, and these in order: they have
// the same bits for any number of threads.
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <tuple>
#include <vector>

#include "common/checks.h"
#include "common/philox.h"
#include "common/scratch.h"
#include "common/simd.h"
#include "common/tensors.h"
#include "laplacian/cpu.h"
#include "matrix/product.h"
#include "ngcf_layer/ngcf_layer.h"

#if GRF_X86_ISAS
#include <immintrin.h>
#endif

namespace grf {
namespace {

// A layer as raw pointers.
template <typename T>
struct Layer {
  int64_t n_rows, in, out;
  const T* features;         // [n_columns, in]
  const int64_t* own_at;     // [n_rows] which of the features are a row's own; or null: in order
  const int64_t* nodes;      // [n_rows] or null: in order
  const T *side_p, *side_q;  // [n_rows, in] products with the matrices of P and Q without their "+I"; one where equal
  bool p_adds_identity, q_adds_identity;
  const T* bias;  // [out] the sum of both; with per_term [2, out]
  T slope, kept;  // kept: what units are multiplied by that are not dropped
  uint32_t threshold, stream, step;
  uint64_t seed;

  const T* own(int64_t i) const { return features + (own_at == nullptr ? i : own_at[i]) * in; }
};

}  // namespace
}  // namespace grf

#define GRF_KERNEL "ngcf_layer/cpu_kernel.inc"
#include "common/foreach_isa.h"

namespace grf {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

constexpr int64_t kRows = 192;     // of a block
constexpr int64_t kMaxParts = 16;  // of the rows, for the gradients of the weights

struct ForwardScratch;
struct BackwardScratch;

// Calls run(first, count) for blocks of rows, on all threads.
template <typename Run>
void for_blocks(int64_t n_rows, const Run& run) {
  at::parallel_for(0, (n_rows + kRows - 1) / kRows, 1, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) run(block * kRows, std::min(kRows, n_rows - block * kRows));
  });
}

// weights [2 in, out]: W1, and W2 below.
template <typename T>
void forward(const Layer<T>& layer, const T* weights, bool per_term, T* out, uint8_t* code) {
  const int64_t in = layer.in, width = layer.out;
  const Matrix<T> first{weights, width}, second{weights + in * width, width};
  for_blocks(layer.n_rows, [&](int64_t begin, int64_t count) {
    Scratch<T, ForwardScratch> scratch(kRows * (2 * in + 2 * width));
    T* inputs = scratch.take(kRows * 2 * in);
    T* sums = scratch.take(kRows * width);
    T* second_sums = per_term ? scratch.take(kRows * width) : nullptr;
    GRF_DISPATCH(combine_rows<T>)(layer, begin, count, inputs);
    multiply<T>(count, width, per_term ? in : 2 * in, {inputs, 2 * in}, first, sums, width);
    if (per_term) multiply<T>(count, width, in, {inputs + in, 2 * in}, second, second_sums, width);
    GRF_DISPATCH(activate_rows<T>)(layer, begin, count, sums, second_sums, out, code);
  });
}

// The gradients of a layer; grad_q null where P and Q have one side.
template <typename T>
struct Gradients {
  T *p, *q, *own;     // [n_rows, in]
  T *weights, *bias;  // [2 in, out], [2, out]
};

// transposed [out, 2 in]: W1^T, and W2^T beside it.
template <typename T>
void backward(const Layer<T>& layer, const T* transposed, bool per_term, const T* grad_out, const uint8_t* code,
              const Gradients<T>& grads) {
  const int64_t in = layer.in, width = layer.out, size = 2 * in * width + 2 * width;
  const int64_t n_blocks = (layer.n_rows + kRows - 1) / kRows, n_parts = std::min(kMaxParts, n_blocks);
  std::vector<T> sums(std::max<int64_t>(n_parts, 1) * size);
  const auto run = [&](int64_t begin, int64_t count, T* grad_weights) {
    T* grad_bias = grad_weights + 2 * in * width;
    Scratch<T, BackwardScratch> scratch(kRows * (4 * in + 2 * width));
    T* inputs = scratch.take(kRows * 2 * in);
    T* grad_inputs = scratch.take(kRows * 2 * in);
    GRF_DISPATCH(combine_rows<T>)(layer, begin, count, inputs);
    const int n_terms = per_term ? 2 : 1;
    for (int term = 0; term < n_terms; ++term) {
      T* before = scratch.take(kRows * width);
      GRF_DISPATCH(unactivate_rows<T>)
      (layer, count, grad_out + begin * width, code + begin * width, term == 0 ? kFirstPositive : kSecondPositive,
       before, grad_bias + term * width);
      const int64_t from = term * in, n = per_term ? in : 2 * in;  // which of the inputs this term is made of
      multiply<T>(count, n, width, {before, width}, {transposed + from, 2 * in}, grad_inputs + from, 2 * in);
      multiply<T>(n, width, count, {inputs + from, 1, 2 * in}, {before, width}, grad_weights + from * width, width,
                  true);
    }
    GRF_DISPATCH(separate_rows<T>)(layer, begin, count, grad_inputs, grads.p, grads.q, grads.own);
  };
  at::parallel_for(0, n_parts, 1, [&](int64_t first_part, int64_t end_part) {
    for (int64_t part = first_part; part < end_part; ++part) {
      for (int64_t block = part * n_blocks / n_parts; block < (part + 1) * n_blocks / n_parts; ++block) {
        run(block * kRows, std::min(kRows, layer.n_rows - block * kRows), sums.data() + part * size);
      }
    }
  });
  for (int64_t part = 1; part < n_parts; ++part) {
    for (int64_t i = 0; i < size; ++i) sums[i] += sums[part * size + i];
  }
  std::copy_n(sums.data(), 2 * in * width, grads.weights);
  std::copy_n(sums.data() + 2 * in * width, 2 * width, grads.bias);
}

// What forward and backward share of their arguments.
struct Call {
  Tensor features, weight_1, weight_2;
  OptionalTensor rows, columns;
  std::vector<int64_t> own_at;
  MatrixOf p, q;
  double slope, message_dropout;
  Propagation how;
  int64_t layer, n_rows;

  Call(const Tensor& e, const Tensor& offsets, const OptionalTensor& r, const OptionalTensor& c, const Tensor& w1,
       const Tensor& w2, std::string_view P, std::string_view Q, double negative_slope, double node_dropout,
       double dropout, int64_t seed, int64_t step, int64_t number)
      : features(e.contiguous()),
        p(P),
        q(Q),
        slope(negative_slope),
        message_dropout(dropout),
        how{p.name, node_dropout, static_cast<uint64_t>(seed), static_cast<uint32_t>(step), false},
        layer(number) {
    check_counters(seed, step, 1);
    check_kernel_dtype("ngcf_layer", e.scalar_type());
    TORCH_CHECK_VALUE(e.dim() == 2 && w1.dim() == 2, "features and weight_1 must be matrices");
    TORCH_CHECK_VALUE(dropout >= 0 && dropout < 1, "message_dropout=", dropout,
                      ": the probability of dropping must be in [0, 1)");
    TORCH_CHECK_VALUE(number >= 0 && number < kMaxLayers, "layer=", number, ": must be in [0, ", kMaxLayers, ")");
    TORCH_CHECK_VALUE(r.has_value() || !c.has_value(), "columns: give rows too, which must be among them");
    weight_1 = grf::contiguous(w1, "weight_1", {e.size(1), w1.size(1)}, e.scalar_type());
    weight_2 = grf::contiguous(w2, "weight_2", w1.sizes(), e.scalar_type());
    if (r.has_value()) rows = r->contiguous();
    if (c.has_value()) columns = c->contiguous();
    n_rows = rows.has_value() ? rows->size(0) : offsets.size(0) - 1;
  }

  Propagation with(const MatrixOf& matrix, bool transposed) const {
    Propagation other = how;
    other.matrix = matrix.name;
    other.transposed = transposed;
    return other;
  }

  // Where the rows stand among the columns; after `propagate` has found both to rise.
  void find_rows() {
    if (!columns.has_value()) return;
    const int64_t *row = rows->const_data_ptr<int64_t>(), *column = columns->const_data_ptr<int64_t>();
    const int64_t n_columns = columns->size(0);
    own_at.resize(n_rows);
    for (int64_t i = 0, j = 0; i < n_rows; ++i) {
      while (j < n_columns && column[j] < row[i]) ++j;
      TORCH_CHECK_VALUE(j < n_columns && column[j] == row[i], "rows: node ", row[i], " is not among the columns");
      own_at[i] = j;
    }
  }

  template <typename T>
  Layer<T> layer_of(const Tensor& side_p, const Tensor& side_q, const T* bias) const {
    const int64_t* nodes = rows.has_value() ? rows->const_data_ptr<int64_t>() : nullptr;
    return {n_rows,
            features.size(1),
            weight_1.size(1),
            features.const_data_ptr<T>(),
            columns.has_value() ? own_at.data() : nodes,
            nodes,
            side_p.const_data_ptr<T>(),
            (p.name == q.name ? side_p : side_q).const_data_ptr<T>(),
            p.adds_identity,
            q.adds_identity,
            bias,
            static_cast<T>(slope),
            static_cast<T>(1 / (1 - message_dropout)),
            static_cast<uint32_t>(std::floor(message_dropout * 4294967296.0)),
            static_cast<uint32_t>(philox::kStreamMessageDropout + layer),
            how.step,
            how.seed};
  }

  static constexpr int64_t kMaxLayers = philox::kStreamTriples - philox::kStreamMessageDropout;
};

std::tuple<Tensor, Tensor, Tensor, Tensor> ngcf_layer(
    const Tensor& features, const Tensor& offsets, const Tensor& neighbours, const OptionalTensor& rows,
    const OptionalTensor& columns, const Tensor& weight_1, const Tensor& bias_1, const Tensor& weight_2,
    const Tensor& bias_2, std::string_view P, std::string_view Q, bool per_term, double negative_slope,
    double node_dropout, double message_dropout, int64_t seed, int64_t step, int64_t layer) {
  Call call(features, offsets, rows, columns, weight_1, weight_2, P, Q, negative_slope, node_dropout, message_dropout,
            seed, step, layer);
  const int64_t width = weight_1.size(1);
  const Tensor b1 = grf::contiguous(bias_1, "bias_1", {width}, features.scalar_type());
  const Tensor b2 = grf::contiguous(bias_2, "bias_2", {width}, features.scalar_type());
  const GraphPart graph{offsets, neighbours, call.rows, call.columns};
  const Tensor side_p = propagate(call.features, graph, call.with(call.p, false));
  const Tensor side_q = call.p.name == call.q.name ? at::empty({0}, side_p.options())
                                                   : propagate(call.features, graph, call.with(call.q, false));
  call.find_rows();
  Tensor out = at::empty({call.n_rows, width}, side_p.options());
  Tensor code = at::empty({call.n_rows, width}, side_p.options().dtype(at::kByte));
  const Tensor weights = at::cat({call.weight_1, call.weight_2}), bias = per_term ? at::cat({b1, b2}) : b1.add(b2);
  AT_DISPATCH_FLOATING_TYPES(features.scalar_type(), "ngcf_layer", [&] {
    forward(call.layer_of<scalar_t>(side_p, side_q, bias.const_data_ptr<scalar_t>()),
            weights.const_data_ptr<scalar_t>(), per_term, out.mutable_data_ptr<scalar_t>(),
            code.mutable_data_ptr<uint8_t>());
  });
  return {out, side_p, side_q, code};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> ngcf_layer_backward(
    const Tensor& grad_out, const Tensor& features, const Tensor& offsets, const Tensor& neighbours,
    const OptionalTensor& rows, const OptionalTensor& columns, const Tensor& weight_1, const Tensor& weight_2,
    const Tensor& side_p, const Tensor& side_q, const Tensor& code, std::string_view P, std::string_view Q,
    bool per_term, double negative_slope, double node_dropout, double message_dropout, int64_t seed, int64_t step,
    int64_t layer) {
  Call call(features, offsets, rows, columns, weight_1, weight_2, P, Q, negative_slope, node_dropout, message_dropout,
            seed, step, layer);
  const int64_t in = features.size(1), width = weight_1.size(1);
  const bool one_side = call.p.name == call.q.name;
  const auto dtype = features.scalar_type();
  const Tensor g = grf::contiguous(grad_out, "grad_out", {call.n_rows, width}, dtype);
  const Tensor p = grf::contiguous(side_p, "side_p", {call.n_rows, in}, dtype);
  const Tensor q = one_side ? side_q : grf::contiguous(side_q, "side_q", {call.n_rows, in}, dtype);
  const Tensor bits = grf::contiguous(code, "code", {call.n_rows, width}, at::kByte);
  call.find_rows();
  const Tensor grad_p = at::empty_like(p), grad_own = at::empty_like(p);
  const Tensor grad_q = one_side ? Tensor() : at::empty_like(p);
  const Tensor grad_weights = at::empty({2, in, width}, p.options()), grad_bias = at::empty({2, width}, p.options());
  const Tensor transposed = at::cat({call.weight_1, call.weight_2}).t().contiguous();
  AT_DISPATCH_FLOATING_TYPES(dtype, "ngcf_layer_backward", [&] {
    const Gradients<scalar_t> grads{grad_p.mutable_data_ptr<scalar_t>(),
                                    one_side ? nullptr : grad_q.mutable_data_ptr<scalar_t>(),
                                    grad_own.mutable_data_ptr<scalar_t>(), grad_weights.mutable_data_ptr<scalar_t>(),
                                    grad_bias.mutable_data_ptr<scalar_t>()};
    backward(call.layer_of<scalar_t>(p, q, nullptr), transposed.const_data_ptr<scalar_t>(), per_term,
             g.const_data_ptr<scalar_t>(), bits.const_data_ptr<uint8_t>(), grads);
  });
  const GraphPart graph = GraphPart{offsets, neighbours, call.rows, call.columns}.transposed();
  Tensor grad_features = propagate(grad_p, graph, call.with(call.p, true), grad_own);
  if (!one_side) grad_features.add_(propagate(grad_q, graph, call.with(call.q, true)));
  const int64_t second = per_term ? 1 : 0;  // in one sum, both biases have one gradient
  return {grad_features, grad_weights[0].clone(), grad_bias[0].clone(), grad_weights[1].clone(),
          grad_bias[second].clone()};
}

TORCH_LIBRARY_IMPL(gru4rec_fast, CPU, m) {
  m.impl("ngcf_layer", &ngcf_layer);
  m.impl("ngcf_layer_backward", &ngcf_layer_backward);
}

}  // namespace
}  // namespace grf
