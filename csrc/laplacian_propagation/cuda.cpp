// L @ E on CUDA: the workspace of its kernels.
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/zeros.h>

#include "common/device.h"
#include "laplacian_propagation/propagate.h"

namespace grf::cuda {

using at::Tensor;

void multiply_laplacian(LaplacianProduct product, const Tensor& features, const Tensor& offsets) {
  const at::Device device = features.device();
  const DeviceGuard guard(device);
  const auto sums = features.options().dtype(product.type == FeatureType::float64 ? at::kDouble : at::kFloat);
  const int64_t n_segments = most_segments(product.n_entries);
  const Tensor scales = at::empty({2, product.n_nodes}, sums);
  const Tensor partials = at::empty({n_segments, product.width}, sums);
  const Tensor lists = at::empty({2, n_segments, 2}, offsets.options());
  const Tensor counts = at::zeros({2}, offsets.options());
  const Tensor positions =
      product.n_columns >= 0 ? at::full({product.n_nodes}, -1, offsets.options().dtype(at::kInt)) : Tensor();
  product.left = scales[0].mutable_data_ptr();
  product.right = scales[1].mutable_data_ptr();
  product.positions = mutable_data_or_null<int32_t>(positions);
  product.partials = partials.mutable_data_ptr();
  product.segments = lists[0].mutable_data_ptr<int64_t>();
  product.long_rows = lists[1].mutable_data_ptr<int64_t>();
  product.counts = reinterpret_cast<unsigned long long*>(counts.mutable_data_ptr<int64_t>());
  multiply_laplacian(product, current_stream(device));
}

}  // namespace grf::cuda
