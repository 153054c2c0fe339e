// L @ E, as other operators call it. Specification: gru4rec_fast/ops/laplacian_propagation.py.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <string_view>

#include "common/operator.h"
#include "laplacian_propagation/laplacian_propagation.h"

namespace grf {

// A graph, and which part of its matrix is multiplied by: the rows wanted and the nodes whose features are given, both
// rising; none: all.
struct GraphPart {
  const at::Tensor &offsets, &neighbors;
  const std::optional<at::Tensor>&rows, &columns;

  GraphPart transposed() const { return {offsets, neighbors, columns, rows}; }
};

// Which matrix of the graph; see the operator `laplacian_propagation`.
struct Propagation {
  std::string_view matrix;
  double dropout;
  int64_t seed, step;
  bool transposed;
};

// The product, a new tensor [n_rows, d]. `added`, where defined, is contiguous and of the shape and dtype of
// `features`: its row of a node is added to the node's result. ValueError: an argument that does not fit; what tensors
// hold is checked here on the CPU, and by the kernels on CUDA.
template <Kernels kernels>
at::Tensor propagate(const at::Tensor& features, const GraphPart& graph, const Propagation& how,
                     const at::Tensor& added = {});

namespace cuda {

// Launches the kernels; they are given the workspace that `product` leaves open.
void multiply_laplacian(LaplacianProduct product, const at::Tensor& features, const at::Tensor& offsets);

}  // namespace cuda

// Rows or columns of a graph part as contiguous memory on `device`; undefined where there are none. ValueError by name.
at::Tensor nodes_on(const at::Device& device, const std::optional<at::Tensor>& nodes, const char* name);

}  // namespace grf
