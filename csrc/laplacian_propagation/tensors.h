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

// The submatrix L[rows][:, columns] of a graph in CSR form. `rows` and `columns` are increasing node indices; nullopt
// means all nodes.
struct Submatrix {
  const at::Tensor &offsets, &neighbors;
  const std::optional<at::Tensor>&rows, &columns;

  Submatrix transposed() const { return {offsets, neighbors, columns, rows}; }
};

// Options of the operator `laplacian_propagation`.
//   matrix      name of L: "symmetric" D^-1/2 A D^-1/2, "mean" D^-1 A, "norm" (D + I)^-1 (A + I) or "plain" A. A is the
//               adjacency matrix, D the diagonal matrix of the degrees.
//   dropout     probability of dropping an entry of L; seed and step select the random numbers. `step` is the result of
//               first_step (common/operator.h).
//   transposed  multiply by L^T. The caller must also swap rows and columns, by Submatrix::transposed().
struct PropagationOptions {
  std::string_view matrix;
  double dropout;
  int64_t seed;
  FirstStep step;
  bool transposed;
};

// Returns L[rows][:, columns] @ features, a new tensor [n_rows, d]. `addend`, if defined, has the shape and dtype of
// `features`: row j belongs to node columns[j]. Result row i gets the row of `addend` that belongs to node rows[i], if
// there is one. Raises ValueError for invalid arguments. On the CPU this function checks the values of
// index tensors; on CUDA the kernels check them.
template <Kernels kernels>
at::Tensor propagate(const at::Tensor& features, const Submatrix& graph, const PropagationOptions& options,
                     const at::Tensor& addend = {});

namespace cuda {

// Allocates the workspace, whose pointers in `args` are null, and launches the kernels.
void multiply_matrix(PropagationArguments args, const at::Tensor& features, const at::Tensor& offsets);

}  // namespace cuda

// Checks row or column indices and returns them as a contiguous tensor, undefined for nullopt. `name` is the argument's
// name in error messages.
at::Tensor contiguous_nodes(const at::Device& device, const std::optional<at::Tensor>& nodes, const char* name);

// Checks on the CPU that the values of `nodes` are strictly increasing nodes of the graph. `nodes` may be undefined.
void check_nodes(const char* name, const at::Tensor& nodes, int64_t n_nodes);

}  // namespace grf
