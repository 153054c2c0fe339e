// L @ E on CUDA. Specification: gru4rec_fast/reference/laplacian.py. What offsets, neighbours, rows and columns hold is
// checked on the device.
#include "laplacian/cuda.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <string_view>

#include "common/checks.h"
#include "common/device.h"
#include "laplacian/propagate.h"

namespace grf::cuda {
namespace {

using at::Tensor;

FeatureType feature_type(at::ScalarType dtype) {
  TORCH_CHECK_VALUE(dtype == at::kFloat || dtype == at::kDouble || dtype == at::kBFloat16,
                    "features must be float32, float64 or bfloat16, not ", dtype);
  return dtype == at::kFloat    ? FeatureType::float32
         : dtype == at::kDouble ? FeatureType::float64
                                : FeatureType::bfloat16;
}

}  // namespace

Tensor nodes_on(const at::Device& device, const std::optional<Tensor>& nodes, const char* name) {
  if (!nodes.has_value()) return Tensor();
  TORCH_CHECK_VALUE(nodes->dim() == 1 && nodes->scalar_type() == at::kLong && nodes->size(0) < int64_t{1} << 31, name,
                    " must be int64, one-dimensional, of fewer than 2**31 nodes");
  return contiguous_on(device, *nodes, name, nodes->sizes(), at::kLong);
}

Tensor propagate(const Tensor& features, const GraphPart& graph, const Propagation& how, const Tensor& added) {
  const auto& [offsets, neighbours, rows, columns] = graph;
  const auto& [name, p, seed, step, transposed] = how;
  TORCH_CHECK_VALUE(name == "symmetric" || name == "mean" || name == "norm" || name == "plain", "matrix='", name,
                    "': choose one of symmetric, mean, norm, plain");
  TORCH_CHECK_VALUE(p >= 0 && p < 1, "dropout=", p, ": the probability of dropping must be in [0, 1)");
  check_counters(seed, step, 1);
  const FeatureType type = feature_type(features.scalar_type());
  const at::Device device = features.device();
  TORCH_CHECK_VALUE(features.dim() == 2 && features.size(0) < int64_t{1} << 32,
                    "features must be [n_nodes, d] of fewer than 2**32 nodes, not ", features.sizes());
  TORCH_CHECK_VALUE(offsets.dim() == 1 && offsets.size(0) >= 1 && offsets.scalar_type() == at::kLong &&
                        (columns.has_value() || offsets.size(0) == features.size(0) + 1),
                    "offsets must be int64 [n_nodes + 1]");
  TORCH_CHECK_VALUE(
      neighbours.dim() == 1 && (neighbours.scalar_type() == at::kInt || neighbours.scalar_type() == at::kLong),
      "neighbours must be int32 or int64 [n_entries]");
  const Tensor e = features.contiguous();
  const Tensor o = contiguous_on(device, offsets, "offsets", offsets.sizes(), at::kLong);
  const Tensor n = contiguous_on(device, neighbours, "neighbours", neighbours.sizes(), neighbours.scalar_type());
  const Tensor r = nodes_on(device, rows, "rows"), c = nodes_on(device, columns, "columns");
  TORCH_CHECK_VALUE(!c.defined() || c.size(0) == e.size(0), "features has ", e.size(0), " rows, but there are ",
                    c.defined() ? c.size(0) : 0, " columns");
  if (added.defined()) contiguous_on(device, added, "added", e.sizes(), e.scalar_type());

  const DeviceGuard guard(device);
  const int64_t n_nodes = o.size(0) - 1, n_rows = r.defined() ? r.size(0) : n_nodes, width = e.size(1);
  const Tensor out = at::empty({n_rows, width}, e.options());
  const auto sums = e.options().dtype(type == FeatureType::float64 ? at::kDouble : at::kFloat);
  const int64_t n_segments = most_segments(n.size(0));
  const Tensor scales = at::empty({2, n_nodes}, sums);
  const Tensor partials = at::empty({n_segments, width}, sums);
  const Tensor lists = at::empty({2, n_segments, 2}, o.options());
  const Tensor counts = at::zeros({2}, o.options());
  const Tensor positions = c.defined() ? at::full({n_nodes}, -1, o.options().dtype(at::kInt)) : Tensor();
  double left = name == "plain" ? 0.0 : name == "symmetric" ? -0.5 : -1.0, right = name == "symmetric" ? -0.5 : 0.0;
  if (transposed) std::swap(left, right);
  const LaplacianProduct product{e.const_data_ptr(),
                                 type,
                                 n_nodes,
                                 width,
                                 o.const_data_ptr<int64_t>(),
                                 n.const_data_ptr(),
                                 n.scalar_type() == at::kLong,
                                 n.size(0),
                                 r.defined() ? r.const_data_ptr<int64_t>() : nullptr,
                                 n_rows,
                                 c.defined() ? c.const_data_ptr<int64_t>() : nullptr,
                                 c.defined() ? c.size(0) : 0,
                                 left,
                                 right,
                                 1 / (1 - p),
                                 name == "norm",
                                 transposed,
                                 static_cast<uint32_t>(std::floor(p * 4294967296.0)),
                                 static_cast<uint32_t>(step),
                                 static_cast<uint64_t>(seed),
                                 added.defined() ? added.const_data_ptr() : nullptr,
                                 out.mutable_data_ptr(),
                                 scales[0].mutable_data_ptr(),
                                 scales[1].mutable_data_ptr(),
                                 c.defined() ? positions.mutable_data_ptr<int32_t>() : nullptr,
                                 partials.mutable_data_ptr(),
                                 lists[0].mutable_data_ptr<int64_t>(),
                                 lists[1].mutable_data_ptr<int64_t>(),
                                 reinterpret_cast<unsigned long long*>(counts.mutable_data_ptr<int64_t>())};
  multiply_laplacian(product, current_stream(device));
  return out;
}

namespace {

Tensor laplacian(const Tensor& features, const Tensor& offsets, const Tensor& neighbours,
                 const std::optional<Tensor>& rows, const std::optional<Tensor>& columns, std::string_view matrix,
                 double dropout, int64_t seed, int64_t step, bool transposed) {
  return propagate(features, {offsets, neighbours, rows, columns}, {matrix, dropout, seed, step, transposed});
}

GRF_DEVICE_IMPL(m) {
  m.impl("laplacian", &laplacian);
}

}  // namespace
}  // namespace grf::cuda
