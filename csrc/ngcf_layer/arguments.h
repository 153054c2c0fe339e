// The checked arguments of the operators ngcf_layer and ngcf_layer_backward, which ngcf_layer/ngcf_layer.cpp passes to
// ngcf_layer/cuda.cpp.
#pragma once

#include <ATen/ops/empty.h>

#include <optional>
#include <string>
#include <string_view>

#include "common/operator.h"
#include "laplacian_propagation/tensors.h"
#include "ngcf_layer/ngcf_layer.h"

namespace grf {  // gru4rec_fast

// A parsed name of a matrix: "mean+I" has the name "mean" and adds the identity.
struct NgcfMatrix {
  std::string name;
  bool adds_identity;

  explicit NgcfMatrix(std::string_view matrix)
      : name(matrix), adds_identity(matrix.size() > 2 && matrix.substr(matrix.size() - 2) == "+I") {
    if (adds_identity) name.resize(name.size() - 2);
  }
};

// p and q [n_rows, n_in]: the features multiplied by the matrices of P and of Q (without "+I"). If P and Q share a
// matrix, p serves for both and q is empty. Each row of the result belongs to a node; self_index [n_rows] is the row of
// this node in `features`. If self_index is undefined, row i belongs to node i.
struct NgcfPropagated {
  at::Tensor p, q, self_index;
};

// The arguments that forward and backward share, checked and contiguous.
struct NgcfArguments {
  at::Device device;
  at::Tensor features, weights;  // weights [2 n_in, n_out]: W1 above W2
  at::Tensor rows, columns;      // nodes of the output rows; nodes with given features. Undefined: all nodes
  NgcfMatrix p, q;
  bool per_term;  // LeakyReLU of P E W1 + b1 and of (Q E * E) W2 + b2 separately; else of their sum
  double slope, message_dropout, node_dropout;
  int64_t seed;
  FirstStep step;  // the training step: a number, plus a counter on the GPU if the argument `step` was a tensor
  int64_t layer_index, n_rows, n_in, n_out;

  NgcfArguments(const at::Tensor& features, const at::Tensor& offsets, const std::optional<at::Tensor>& rows,
                const std::optional<at::Tensor>& columns, const at::Tensor& weight_1, const at::Tensor& weight_2,
                std::string_view P, std::string_view Q, bool per_term, double negative_slope, double node_dropout,
                double message_dropout, int64_t seed, const FirstStep& step, int64_t layer_index);

  bool shares_matrix() const { return p.name == q.name; }
  // The layer multiplies `inputs` [n_rows, 2 n_in] (see ngcf_layer.h) by the weights in n_products() matrix products.
  // Each product takes product_width() columns of `inputs`.
  int n_products() const { return per_term ? 2 : 1; }
  int64_t product_width() const { return per_term ? n_in : 2 * n_in; }
  at::Tensor empty(at::IntArrayRef shape) const { return at::empty(shape, features.options()); }
  PropagationOptions propagation(const NgcfMatrix& matrix, bool transposed) const {
    return {matrix.name, node_dropout, seed, step, transposed};
  }
  template <typename T>
  NgcfLayer<T> layer(const NgcfPropagated& propagated) const {
    const at::Tensor& propagated_q = shares_matrix() ? propagated.p : propagated.q;
    const NgcfRows<T> layer_rows{n_rows,
                                 n_in,
                                 features.const_data_ptr<T>(),
                                 data_or_null<int64_t>(propagated.self_index),
                                 propagated.p.const_data_ptr<T>(),
                                 propagated_q.const_data_ptr<T>(),
                                 p.adds_identity,
                                 q.adds_identity};
    const T keep_scale = static_cast<T>(1 / (1 - message_dropout));
    return {layer_rows, NgcfUnits<T>{n_rows, n_out, static_cast<T>(slope), keep_scale}, dropout()};
  }
  MessageDropout dropout() const;
};

// The gradients that the backward pass computes before it multiplies by the graph's matrices: of NgcfPropagated::p and
// q, of the features of each row's own node, and of weights and biases. If P and Q share a matrix, propagated_q is
// undefined.
struct NgcfGradientTensors {
  at::Tensor propagated_p, propagated_q, self_features;  // [n_rows, n_in]
  at::Tensor weights, bias_1, bias_2;                    // [2 n_in, n_out], [n_out], [n_out]
};

namespace cuda {

// Writes the index in `columns` of each element of `rows` to self_index [n_rows].
void find_rows(const NgcfArguments& args, at::Tensor& self_index);
// Compute all elements of `out` and `flags`, or of `grads`.
void ngcf_forward(const NgcfArguments& args, const NgcfPropagated& propagated, const at::Tensor& bias_1,
                  const at::Tensor& bias_2, at::Tensor& out, at::Tensor& flags);
void ngcf_backward(const NgcfArguments& args, const NgcfPropagated& propagated, const at::Tensor& grad_out,
                   const at::Tensor& flags, NgcfGradientTensors& grads);

}  // namespace cuda
}  // namespace grf
