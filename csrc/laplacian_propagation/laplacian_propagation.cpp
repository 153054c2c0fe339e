// The operator L @ E. Specification: gru4rec_fast/ops/laplacian_propagation.py.
#include "laplacian_propagation/laplacian_propagation.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <utility>

#include "common/checks.h"
#include "common/philox.h"
#include "laplacian_propagation/propagate.h"

namespace grf {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

Tensor nodes_on(const at::Device& device, const OptionalTensor& nodes, const char* name) {
  if (!nodes.has_value()) return Tensor();
  TORCH_CHECK_VALUE(nodes->dim() == 1 && nodes->scalar_type() == at::kLong && nodes->size(0) < int64_t{1} << 31, name,
                    " must be int64, one-dimensional, of fewer than 2**31 nodes");
  return contiguous(*nodes, name, nodes->sizes(), at::kLong, device);
}

namespace {

FeatureType feature_type(at::ScalarType dtype) {
  TORCH_CHECK_VALUE(dtype == at::kFloat || dtype == at::kDouble || dtype == at::kBFloat16,
                    "features must be float32, float64 or bfloat16, not ", dtype);
  return dtype == at::kFloat    ? FeatureType::float32
         : dtype == at::kDouble ? FeatureType::float64
                                : FeatureType::bfloat16;
}

void check(const Tensor& features, const GraphPart& graph, const Propagation& how) {
  const auto& [offsets, neighbors, rows, columns] = graph;
  TORCH_CHECK_VALUE(how.matrix == "symmetric" || how.matrix == "mean" || how.matrix == "norm" || how.matrix == "plain",
                    "matrix='", how.matrix, "': choose one of symmetric, mean, norm, plain");
  TORCH_CHECK_VALUE(how.dropout >= 0 && how.dropout < 1, "dropout=", how.dropout,
                    ": the probability of dropping must be in [0, 1)");
  check_counters(how.seed, how.step, 1);
  TORCH_CHECK_VALUE(features.dim() == 2 && features.size(0) < int64_t{1} << 32,
                    "features must be [n_nodes, d] of fewer than 2**32 nodes, not ", features.sizes());
  TORCH_CHECK_VALUE(offsets.dim() == 1 && offsets.size(0) >= 1 && offsets.scalar_type() == at::kLong &&
                        (columns.has_value() || offsets.size(0) == features.size(0) + 1),
                    "offsets must be int64 [n_nodes + 1]");
  TORCH_CHECK_VALUE(
      neighbors.dim() == 1 && (neighbors.scalar_type() == at::kInt || neighbors.scalar_type() == at::kLong),
      "neighbors must be int32 or int64 [n_entries]");
}

// Nodes that rise strictly: each at most once, all there.
void check_nodes(const char* name, const Tensor& nodes, int64_t n_nodes) {
  if (!nodes.defined()) return;
  const int64_t* node = nodes.const_data_ptr<int64_t>();
  const int64_t n = nodes.size(0);
  TORCH_CHECK_VALUE(n == 0 || (node[0] >= 0 && node[n - 1] < n_nodes &&
                               std::is_sorted(
                                   node, node + n, [](int64_t a, int64_t b) { return a <= b; })),
                    name, " must be nodes in 0 to ", n_nodes - 1, ", each rising above the one before");
}

void check_offsets(const Tensor& offsets, int64_t n_entries) {
  const int64_t *offset = offsets.const_data_ptr<int64_t>(), *end = offset + offsets.size(0);
  TORCH_CHECK_VALUE(offset[0] == 0 && end[-1] == n_entries && std::is_sorted(offset, end),
                    "offsets must rise from 0 to ", n_entries, ", the number of neighbors, and never fall");
}

}  // namespace

template <Kernels kernels>
Tensor propagate(const Tensor& features, const GraphPart& graph, const Propagation& how, const Tensor& added) {
  check(features, graph, how);
  const FeatureType type = feature_type(features.scalar_type());
  const at::Device device = features.device();
  const Tensor e = features.contiguous();
  const Tensor o = contiguous(graph.offsets, "offsets", graph.offsets.sizes(), at::kLong, device);
  const Tensor n =
      contiguous(graph.neighbors, "neighbors", graph.neighbors.sizes(), graph.neighbors.scalar_type(), device);
  const Tensor r = nodes_on(device, graph.rows, "rows"), c = nodes_on(device, graph.columns, "columns");
  TORCH_CHECK_VALUE(!c.defined() || c.size(0) == e.size(0), "features has ", e.size(0), " rows, but there are ",
                    c.defined() ? c.size(0) : 0, " columns");
  if (added.defined()) contiguous(added, "added", e.sizes(), e.scalar_type(), device);
  const int64_t n_nodes = o.size(0) - 1, n_rows = r.defined() ? r.size(0) : n_nodes, width = e.size(1);
  const Tensor out = at::empty({n_rows, width}, e.options());
  const bool plain = how.matrix == "plain", symmetric = how.matrix == "symmetric";
  double left = plain ? 0.0 : symmetric ? -0.5 : -1.0, right = symmetric ? -0.5 : 0.0;
  if (how.transposed) std::swap(left, right);
  const LaplacianProduct product{e.const_data_ptr(),
                                 type,
                                 n_nodes,
                                 width,
                                 o.const_data_ptr<int64_t>(),
                                 n.const_data_ptr(),
                                 n.scalar_type() == at::kLong,
                                 n.size(0),
                                 data_or_null<int64_t>(r),
                                 n_rows,
                                 data_or_null<int64_t>(c),
                                 c.defined() ? c.size(0) : -1,
                                 left,
                                 right,
                                 1 / (1 - how.dropout),
                                 how.matrix == "norm",
                                 how.transposed,
                                 philox::drop_threshold(how.dropout),
                                 static_cast<uint32_t>(how.step),
                                 static_cast<uint64_t>(how.seed),
                                 added.defined() ? added.const_data_ptr() : nullptr,
                                 out.mutable_data_ptr(),
                                 nullptr,
                                 nullptr,
                                 nullptr,
                                 nullptr,
                                 nullptr,
                                 nullptr,
                                 nullptr};
  if constexpr (kernels == Kernels::cuda) {
    cuda::multiply_laplacian(product, e, o);
  } else {
    check_nodes("rows", r, n_nodes);
    check_nodes("columns", c, n_nodes);
    check_offsets(o, n.size(0));
    multiply_laplacian(product);
  }
  return out;
}

namespace {

template <Kernels kernels>
Tensor laplacian_propagation(const Tensor& features, const Tensor& offsets, const Tensor& neighbors, const OptionalTensor& rows,
                 const OptionalTensor& columns, std::string_view matrix, double dropout, int64_t seed, int64_t step,
                 bool transposed) {
  return propagate<kernels>(features, {offsets, neighbors, rows, columns}, {matrix, dropout, seed, step, transposed});
}

template <Kernels kernels>
void implement(torch::Library& m) {
  m.impl("laplacian_propagation", &laplacian_propagation<kernels>);
}
GRF_REGISTER(implement)

}  // namespace

#define GRF_INSTANTIATE(kernels) \
  template Tensor propagate<kernels>(const Tensor&, const GraphPart&, const Propagation&, const Tensor&);
GRF_EACH_KERNELS(GRF_INSTANTIATE)
#undef GRF_INSTANTIATE

}  // namespace grf
