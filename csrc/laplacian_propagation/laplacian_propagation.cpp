// The operator laplacian_propagation: checks arguments and allocates the result. Specification:
// gru4rec_fast/ops/laplacian_propagation.py.
#include "laplacian_propagation/laplacian_propagation.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <functional>
#include <utility>

#include "common/checks.h"
#include "common/philox.h"
#include "laplacian_propagation/tensors.h"

namespace grf {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

Tensor contiguous_nodes(const at::Device& device, const OptionalTensor& nodes, const char* name) {
  if (!nodes.has_value()) return Tensor();
  TORCH_CHECK_VALUE(nodes->dim() == 1 && nodes->scalar_type() == at::kLong && nodes->size(0) < int64_t{1} << 31, name,
                    " must be int64, one-dimensional, of fewer than 2**31 nodes, not ", nodes->scalar_type(), " ",
                    nodes->sizes());
  return contiguous(*nodes, name, nodes->sizes(), at::kLong, device);
}

namespace {

FeatureDtype feature_dtype(at::ScalarType dtype) {
  TORCH_CHECK_VALUE(dtype == at::kFloat || dtype == at::kDouble || dtype == at::kBFloat16,
                    "features must be float32, float64 or bfloat16, not ", dtype);
  return dtype == at::kFloat    ? FeatureDtype::float32
         : dtype == at::kDouble ? FeatureDtype::float64
                                : FeatureDtype::bfloat16;
}

void check_arguments(const Tensor& features, const Submatrix& graph, const PropagationOptions& options) {
  const auto& [offsets, neighbors, rows, columns] = graph;
  TORCH_CHECK_VALUE(options.matrix == "symmetric" || options.matrix == "mean" || options.matrix == "norm" ||
                        options.matrix == "plain",
                    "matrix='", options.matrix, "': choose one of symmetric, mean, norm, plain");
  TORCH_CHECK_VALUE(options.dropout >= 0 && options.dropout < 1, "dropout=", options.dropout,
                    ": the probability of dropping must be in [0, 1)");
  TORCH_CHECK_VALUE(features.dim() == 2 && features.size(0) < int64_t{1} << 32,
                    "features must be [n_nodes, d] of fewer than 2**32 nodes, not ", features.sizes());
  TORCH_CHECK_VALUE(offsets.dim() == 1 && offsets.size(0) >= 1 && offsets.scalar_type() == at::kLong &&
                        (columns.has_value() || offsets.size(0) == features.size(0) + 1),
                    "offsets must be int64 [n_nodes + 1], not ", offsets.scalar_type(), " ", offsets.sizes(),
                    " (features: ", features.sizes(), ")");
  TORCH_CHECK_VALUE(
      neighbors.dim() == 1 && (neighbors.scalar_type() == at::kInt || neighbors.scalar_type() == at::kLong),
      "neighbors must be int32 or int64 [n_entries], not ", neighbors.scalar_type(), " ", neighbors.sizes());
}

void check_offsets(const Tensor& offsets, int64_t n_entries) {
  const int64_t *offset = offsets.const_data_ptr<int64_t>(), *end = offset + offsets.size(0);
  TORCH_CHECK_VALUE(offset[0] == 0 && end[-1] == n_entries && std::is_sorted(offset, end),
                    "offsets must not decrease from 0 to ", n_entries, ", the number of neighbors");
}

}  // namespace

void check_nodes(const char* name, const Tensor& nodes, int64_t n_nodes) {
  if (!nodes.defined()) return;
  const int64_t* node = nodes.const_data_ptr<int64_t>();
  const int64_t n = nodes.size(0);
  const bool is_increasing = std::adjacent_find(node, node + n, std::greater_equal<>()) == node + n;
  TORCH_CHECK_VALUE(n == 0 || (node[0] >= 0 && node[n - 1] < n_nodes && is_increasing), name,
                    " must be strictly increasing nodes from 0 to ", n_nodes - 1);
}

template <Kernels kernels>
Tensor propagate(const Tensor& features, const Submatrix& graph, const PropagationOptions& options,
                 const Tensor& addend) {
  check_arguments(features, graph, options);
  const FeatureDtype dtype = feature_dtype(features.scalar_type());
  const at::Device device = features.device();
  const Tensor contiguous_features = features.contiguous();
  const Tensor offsets = contiguous(graph.offsets, "offsets", graph.offsets.sizes(), at::kLong, device);
  const Tensor neighbors =
      contiguous(graph.neighbors, "neighbors", graph.neighbors.sizes(), graph.neighbors.scalar_type(), device);
  const Tensor rows = contiguous_nodes(device, graph.rows, "rows");
  const Tensor columns = contiguous_nodes(device, graph.columns, "columns");
  TORCH_CHECK_VALUE(!columns.defined() || columns.size(0) == features.size(0), "features has ", features.size(0),
                    " rows, but columns has ", columns.defined() ? columns.size(0) : 0, " nodes");
  // A backward pass computes a gradient of features, and `addend` is another contribution to this gradient. Both
  // `addend` and `features` have a row for each of `columns`; see tensors.h.
  const Tensor contiguous_addend =
      addend.defined() ? contiguous(addend, "addend", features.sizes(), features.scalar_type(), device) : Tensor();
  const int64_t n_nodes = offsets.size(0) - 1, n_rows = rows.defined() ? rows.size(0) : n_nodes;
  const int64_t width = features.size(1);
  const Tensor out = at::empty({n_rows, width}, contiguous_features.options());
  const bool plain = options.matrix == "plain", symmetric = options.matrix == "symmetric";
  double row_exponent = plain ? 0.0 : symmetric ? -0.5 : -1.0, column_exponent = symmetric ? -0.5 : 0.0;
  if (options.transposed) std::swap(row_exponent, column_exponent);
  const PropagationArguments args{.features = contiguous_features.const_data_ptr(),
                                  .dtype = dtype,
                                  .n_nodes = n_nodes,
                                  .width = width,
                                  .offsets = offsets.const_data_ptr<int64_t>(),
                                  .neighbors = neighbors.const_data_ptr(),
                                  .neighbors_are_int64 = neighbors.scalar_type() == at::kLong,
                                  .n_entries = neighbors.size(0),
                                  .rows = data_or_null<int64_t>(rows),
                                  .n_rows = n_rows,
                                  .columns = data_or_null<int64_t>(columns),
                                  .n_columns = columns.defined() ? columns.size(0) : -1,
                                  .row_exponent = row_exponent,
                                  .column_exponent = column_exponent,
                                  .dropout_scale = 1 / (1 - options.dropout),
                                  .adds_identity = options.matrix == "norm",
                                  .transposed = options.transposed,
                                  .drop_threshold = philox::drop_threshold(options.dropout),
                                  .step = static_cast<uint32_t>(options.step.number),
                                  .seed = static_cast<uint64_t>(options.seed),
                                  .counter = options.step.counter,
                                  .addend = contiguous_addend.defined() ? contiguous_addend.const_data_ptr() : nullptr,
                                  .out = out.mutable_data_ptr()};
  if constexpr (kernels == Kernels::cuda) {
    cuda::multiply_matrix(args, contiguous_features, offsets);
  } else {
    check_nodes("rows", rows, n_nodes);
    check_nodes("columns", columns, n_nodes);
    check_offsets(offsets, neighbors.size(0));
    multiply_matrix(args);
  }
  return out;
}

namespace {

template <Kernels kernels>
Tensor laplacian_propagation(const Tensor& features, const Tensor& offsets, const Tensor& neighbors,
                             const OptionalTensor& rows, const OptionalTensor& columns, std::string_view matrix,
                             double dropout, int64_t seed, int64_t step, const OptionalTensor& counter,
                             bool transposed) {
  check_counters(seed, step, /*steps=*/1);
  const FirstStep first = first_step<kernels>(step, counter, /*steps=*/1, features.device());
  return propagate<kernels>(features, {offsets, neighbors, rows, columns}, {matrix, dropout, seed, first, transposed});
}

GRF_REGISTER(laplacian_propagation)

}  // namespace

#define GRF_INSTANTIATE(kernels) \
  template Tensor propagate<kernels>(const Tensor&, const Submatrix&, const PropagationOptions&, const Tensor&);
GRF_EACH_KERNELS(GRF_INSTANTIATE)
#undef GRF_INSTANTIATE

}  // namespace grf
