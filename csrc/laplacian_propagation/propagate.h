// The product L @ E of a graph's propagation matrix L and its nodes' features E, on tensors, for the operators
// laplacian_propagation and ngcf_layer. Specification: gru4rec_fast/ops/laplacian_propagation.py.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <string_view>

#include "common/operator.h"
#include "laplacian_propagation/laplacian_propagation.h"

namespace grf {  // gru4rec_fast

// The submatrix L[rows][:, columns] of a graph in CSR form. Rows and columns are increasing node indices; nullopt means
// all nodes.
struct Submatrix {
  const at::Tensor &offsets, &neighbors;
  const std::optional<at::Tensor>&rows, &columns;

  Submatrix transposed() const { return {offsets, neighbors, columns, rows}; }
};

// Options of the operator `laplacian_propagation`.
struct PropagationOptions {
  std::string_view matrix;
  double dropout;
  int64_t seed, step;
  bool transposed;
};

// Returns L[rows][:, columns] @ features, a new tensor [n_rows, d]. `addend`, if defined, has the shape and dtype of
// `features`; its row for a node is added to the node's row of the result. Raises ValueError for invalid arguments. The
// values of index tensors are checked here on the CPU, and by the kernels on CUDA.
template <Kernels kernels>
at::Tensor propagate(const at::Tensor& features, const Submatrix& graph, const PropagationOptions& options,
                     const at::Tensor& addend = {});

namespace cuda {

// Allocates the workspace that `args` has null pointers for, and launches the kernels.
void multiply_matrix(PropagationArguments args, const at::Tensor& features, const at::Tensor& offsets);

}  // namespace cuda

// Checks row or column indices and returns them as a contiguous tensor, undefined for nullopt. `name` is the argument's
// name in error messages.
at::Tensor contiguous_nodes(const at::Device& device, const std::optional<at::Tensor>& nodes, const char* name);

}  // namespace grf
