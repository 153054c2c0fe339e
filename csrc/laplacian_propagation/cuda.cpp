// The product L @ E on CUDA: allocates the workspace of the kernels and launches them. Specification:
// gru4rec_fast/ops/laplacian_propagation.py.
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/zeros.h>

#include "common/device.h"
#include "laplacian_propagation/tensors.h"

namespace grf::cuda {

using at::Tensor;

void multiply_matrix(PropagationArguments args, const Tensor& features, const Tensor& offsets) {
  const at::Device device = features.device();
  const DeviceGuard guard(device);
  const auto sum_options = features.options().dtype(args.dtype == FeatureDtype::float64 ? at::kDouble : at::kFloat);
  // A row of many entries is cut into segments, which different warps sum. segment_lists[0] lists the segments, and
  // segment_lists[1] the rows that are cut; PropagationArguments explains the two numbers of each element. `counts`
  // holds the lengths of the two lists.
  const int64_t n_segments = max_segments(args.n_entries);
  const Tensor scales = at::empty({2, args.n_nodes}, sum_options);
  const Tensor segment_sums = at::empty({n_segments, args.width}, sum_options);
  const Tensor segment_lists = at::empty({2, n_segments, 2}, offsets.options());
  const Tensor counts = at::zeros({2}, offsets.options());
  // Each node's row in `features`, -1 if it has none. If n_columns is -1, the features of all nodes are given, and this
  // tensor is not needed.
  const Tensor feature_rows =
      args.n_columns >= 0 ? at::full({args.n_nodes}, /*fill_value=*/-1, offsets.options().dtype(at::kInt)) : Tensor();
  args.row_scale = scales[0].mutable_data_ptr();
  args.column_scale = scales[1].mutable_data_ptr();
  args.feature_rows = mutable_data_or_null<int32_t>(feature_rows);
  args.segment_sums = segment_sums.mutable_data_ptr();
  args.segments = segment_lists[0].mutable_data_ptr<int64_t>();
  args.long_rows = segment_lists[1].mutable_data_ptr<int64_t>();
  args.counts = reinterpret_cast<unsigned long long*>(counts.mutable_data_ptr<int64_t>());
  multiply_matrix(args, current_stream(device));
}

}  // namespace grf::cuda
