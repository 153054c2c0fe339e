// Registers the operator bpr_triples, which draws training triples: checks the arguments and allocates the result.
// Specification: gru4rec_fast/ops/bpr_triples.py. The values of index tensors are not checked here: a kernel that draws
// a triple checks the values that it reads.
#include "bpr_triples/bpr_triples.h"

#include <ATen/ops/empty.h>

#include <optional>

#include "common/checks.h"
#include "common/device.h"
#include "common/operator.h"

namespace grf {
namespace {

using at::Tensor;

constexpr int64_t kDrawLimit = int64_t{1} << 31;  // draw.h draws integers from fewer than this many values

template <Kernels kernels>
Tensor bpr_triples(const Tensor& offsets, const Tensor& neighbors, const Tensor& users,
                   const std::optional<Tensor>& starts, int64_t n_users, int64_t n_items, int64_t n, int64_t seed,
                   int64_t step, const std::optional<Tensor>& counter) {
  check_counters(seed, step, /*steps=*/1);
  TORCH_CHECK_VALUE(n >= 0 && n < int64_t{1} << 32, "n=", n, ": must be in [0, 2**32)");
  TORCH_CHECK_VALUE(n_users >= 1 && n_users < kDrawLimit, "n_users=", n_users, ": must be in [1, 2**31)");
  TORCH_CHECK_VALUE(n_items >= 1 && n_items < kDrawLimit, "n_items=", n_items, ": must be in [1, 2**31)");
  const at::Device device = offsets.device();
  TORCH_CHECK_VALUE(
      offsets.dim() == 1 && offsets.size(0) == n_users + n_items + 1 && offsets.scalar_type() == at::kLong,
      "offsets must be int64 [", n_users + n_items + 1, "] for ", n_users, " users and ", n_items, " items, not ",
      offsets.scalar_type(), " ", offsets.sizes());
  TORCH_CHECK_VALUE(
      neighbors.dim() == 1 && (neighbors.scalar_type() == at::kInt || neighbors.scalar_type() == at::kLong),
      "neighbors must be int32 or int64 [n_entries], not ", neighbors.scalar_type(), " ", neighbors.sizes());
  TORCH_CHECK_VALUE(
      users.dim() == 1 && users.size(0) >= 1 && users.size(0) < kDrawLimit && users.scalar_type() == at::kLong,
      "users must be int64 [n_candidates], one at least, not ", users.scalar_type(), " ", users.sizes());
  TORCH_CHECK_VALUE(!starts.has_value() || (starts->dim() == 1 && starts->size(0) == users.size(0) + 1 &&
                                            starts->scalar_type() == at::kLong),
                    "starts must be int64 [", users.size(0) + 1, "], the number of users + 1");
  const Tensor contiguous_offsets = contiguous(offsets, "offsets", offsets.sizes(), at::kLong, device);
  const Tensor contiguous_neighbors =
      contiguous(neighbors, "neighbors", neighbors.sizes(), neighbors.scalar_type(), device);
  const Tensor contiguous_users = contiguous(users, "users", users.sizes(), at::kLong, device);
  const Tensor contiguous_starts = contiguous(starts, "starts", {users.size(0) + 1}, at::kLong, device);
  const FirstStep first = first_step<kernels>(step, counter, /*steps=*/1, device);
  const Tensor out = at::empty({3, n}, users.options());
  const TripleArguments args{.offsets = contiguous_offsets.const_data_ptr<int64_t>(),
                             .neighbors = contiguous_neighbors.const_data_ptr(),
                             .neighbors_are_int64 = neighbors.scalar_type() == at::kLong,
                             .n_entries = neighbors.size(0),
                             .users = contiguous_users.const_data_ptr<int64_t>(),
                             .n_candidates = users.size(0),
                             .starts = data_or_null<int64_t>(contiguous_starts),
                             .n_users = n_users,
                             .n_items = n_items,
                             .seed = static_cast<uint64_t>(seed),
                             .step = static_cast<uint32_t>(first.number),
                             .n = n,
                             .out = out.mutable_data_ptr<int64_t>(),
                             .counter = first.counter};
  if constexpr (kernels == Kernels::cuda) {
    const DeviceGuard guard(device);
    cuda::draw_triples(args, current_stream(device));
  } else {
    draw_triples(args);
  }
  return out;
}

GRF_REGISTER(bpr_triples)

}  // namespace
}  // namespace grf
