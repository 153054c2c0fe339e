// L @ E, as other kernels call it. Specification: gru4rec_fast/reference/laplacian.py.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <string_view>

namespace grf {

// A graph, and which part of its matrix is multiplied by: the rows wanted and the nodes whose features are given, both
// rising; none: all.
struct GraphPart {
  const at::Tensor &offsets, &neighbours;
  const std::optional<at::Tensor>&rows, &columns;

  GraphPart transposed() const { return {offsets, neighbours, columns, rows}; }
};

// Which matrix of the graph; see the operator `laplacian`.
struct Propagation {
  std::string_view matrix;
  double dropout;
  uint64_t seed;
  uint32_t step;
  bool transposed;
};

// The product, a new tensor [n_rows, d]. `added`, where defined, is contiguous and of the shape and dtype of
// `features`: its row of a node is added to the node's result. ValueError: an argument that does not fit.
at::Tensor propagate(const at::Tensor& features, const GraphPart& graph, const Propagation& how,
                     const at::Tensor& added = {});

}  // namespace grf
