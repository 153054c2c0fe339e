// The tensors of the NGCF layer's operators: what ngcf_layer/ngcf_layer.cpp checks and allocates, and
// ngcf_layer/cuda.cpp works on.
#pragma once

#include <ATen/ops/empty.h>

#include <optional>
#include <string>
#include <string_view>

#include "common/operator.h"
#include "laplacian_propagation/propagate.h"
#include "ngcf_layer/ngcf_layer.h"

namespace grf {

// "mean+I" as "mean" and true.
struct MatrixOf {
  std::string name;
  bool adds_identity;

  explicit MatrixOf(std::string_view matrix)
      : name(matrix), adds_identity(matrix.size() > 2 && matrix.substr(matrix.size() - 2) == "+I") {
    if (adds_identity) name.resize(name.size() - 2);
  }
};

// The products with the matrices of P and Q, and which of the features are the rows' own (undefined: in order).
struct NgcfSides {
  at::Tensor p, q, own_at;
};

// What forward and backward share of their arguments, checked and contiguous.
struct NgcfCall {
  at::Device device;
  at::Tensor features, weights;  // weights [2 in, width]: W1, and W2 below
  at::Tensor rows, columns;
  MatrixOf p, q;
  bool per_term;
  double slope, message_dropout, node_dropout;
  int64_t seed, step, layer, n_rows, in, width;

  NgcfCall(const at::Tensor& features, const at::Tensor& offsets, const std::optional<at::Tensor>& rows,
           const std::optional<at::Tensor>& columns, const at::Tensor& weight_1, const at::Tensor& weight_2,
           std::string_view P, std::string_view Q, bool per_term, double negative_slope, double node_dropout,
           double message_dropout, int64_t seed, int64_t step, int64_t layer);

  bool one_side() const { return p.name == q.name; }
  int n_terms() const { return per_term ? 2 : 1; }
  int64_t term_width() const { return per_term ? in : 2 * in; }  // of the inputs that a term is made of
  at::Tensor empty(at::IntArrayRef shape) const { return at::empty(shape, features.options()); }
  Propagation with(const MatrixOf& matrix, bool transposed) const {
    return {matrix.name, node_dropout, seed, step, transposed};
  }
  template <typename T>
  NgcfLayer<T> of(const NgcfSides& sides) const {
    return {{n_rows, in, features.const_data_ptr<T>(), data_or_null<int64_t>(sides.own_at), sides.p.const_data_ptr<T>(),
             (one_side() ? sides.p : sides.q).const_data_ptr<T>(), p.adds_identity, q.adds_identity},
            {n_rows, width, static_cast<T>(slope), static_cast<T>(1 / (1 - message_dropout))},
            dropout()};
  }
  MessageDropout dropout() const;
};

// The results of backward before the product with the graph's matrix: gradients of the sides (q undefined where there
// is one), of the rows' own features, of the weights [2 in, width], and of the biases.
struct NgcfGradientTensors {
  at::Tensor p, q, own, weights, bias_1, bias_2;
};

namespace cuda {

// own_at [n_rows]: where the rows stand among the columns.
void find_rows(const NgcfCall& call, at::Tensor& own_at);
void ngcf_forward(const NgcfCall& call, const NgcfSides& sides, const at::Tensor& bias_1, const at::Tensor& bias_2,
                  at::Tensor& out, at::Tensor& code);
void ngcf_backward(const NgcfCall& call, const NgcfSides& sides, const at::Tensor& grad_out, const at::Tensor& code,
                   NgcfGradientTensors& grads);

}  // namespace cuda
}  // namespace grf
