// The operators target_rank and top_k: check arguments and allocate results. Specification:
// gru4rec_fast/ops/ranking.py. For the CPU, the values of targets and exclude are checked here; on CUDA, the kernels
// check them.
#include "ranking/ranking.h"

#include <ATen/Dispatch.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/sort.h>
#include <ATen/ops/zeros_like.h>

#include <algorithm>
#include <tuple>

#include "common/operator.h"
#include "ranking/arguments.h"

namespace grf {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

// Checks the arguments that target_rank and top_k share, and returns them as contiguous tensors.
RankingTensors check_tensors(const Tensor& hidden, const Tensor& weight, const OptionalTensor& bias) {
  TORCH_CHECK_VALUE(hidden.dim() == 2 && weight.dim() == 2 && hidden.size(1) == weight.size(1),
                    "hidden must be [Q, H] and weight [I, H], got shapes ", hidden.sizes(), " and ", weight.sizes());
  TORCH_CHECK_VALUE(weight.size(0) > 0, "weight has no rows: the catalogue is empty");
  TORCH_CHECK_VALUE(weight.scalar_type() == hidden.scalar_type(), "weight must have the dtype of hidden, ",
                    hidden.scalar_type(), ", got ", weight.scalar_type());
  TORCH_CHECK_VALUE(!bias.has_value() || (bias->dim() == 1 && bias->size(0) == weight.size(0) &&
                                          bias->scalar_type() == hidden.scalar_type()),
                    "bias must be [I] = [", weight.size(0), "] in the dtype of hidden, ", hidden.scalar_type(),
                    ", got ", bias.has_value() ? bias->sizes() : at::IntArrayRef());
  const auto dtype = hidden.scalar_type();
  const at::Device device = hidden.device();
  return {hidden.contiguous(), contiguous(weight, "weight", weight.sizes(), dtype, device),
          contiguous(bias, "bias", {weight.size(0)}, dtype, device)};
}

template <typename T>
RankingArguments<T> make_ranking_arguments(const RankingTensors& tensors) {
  return {.hidden = tensors.hidden.const_data_ptr<T>(),
          .weight = tensors.weight.const_data_ptr<T>(),
          .bias = data_or_null<T>(tensors.bias),
          .n_queries = tensors.hidden.size(0),
          .n_items = tensors.weight.size(0),
          .width = tensors.weight.size(1)};
}

void check_targets(const Tensor& targets, int64_t n_items) {
  const int64_t* target = targets.const_data_ptr<int64_t>();
  for (int64_t q = 0; q < targets.size(0); ++q) {
    TORCH_CHECK_VALUE(0 <= target[q] && target[q] < n_items, "targets out of range: targets[", q, "] = ", target[q],
                      ", the catalogue has ", n_items, " items");
  }
}

// Returns the number of other items that score higher than the target, and the number that score the same. The rank of
// the target is computed from these counts.
template <Kernels kernels>
std::tuple<Tensor, Tensor> target_rank(const Tensor& hidden, const Tensor& weight, const OptionalTensor& bias,
                                       const Tensor& targets) {
  const RankingTensors tensors = check_tensors(hidden, weight, bias);
  TORCH_CHECK_VALUE(targets.dim() == 1 && targets.size(0) == hidden.size(0) && targets.scalar_type() == at::kLong,
                    "targets must be int64 [Q] = [", hidden.size(0), "], got ", targets.scalar_type(), " ",
                    targets.sizes());
  const Tensor target_items = contiguous(targets, "targets", targets.sizes(), at::kLong, hidden.device());
  Tensor greater = at::zeros_like(target_items), equal = at::zeros_like(target_items);
  if (hidden.size(0) == 0) return {greater, equal};
  if constexpr (kernels == Kernels::cuda) {
    cuda::target_rank(tensors, target_items, greater, equal);
  } else {
    check_targets(target_items, weight.size(0));
    AT_DISPATCH_FLOATING_TYPES(hidden.scalar_type(), "target_rank", [&] {
      rank_targets(make_ranking_arguments<scalar_t>(tensors), target_items.const_data_ptr<int64_t>(),
                   greater.mutable_data_ptr<int64_t>(), equal.mutable_data_ptr<int64_t>());
    });
  }
  return {greater, equal};
}

// Returns `exclude` with each row sorted in increasing order, or an empty tensor [Q, 0] if `exclude` is None.
Tensor sort_excluded(const OptionalTensor& exclude, const RankingTensors& tensors) {
  const int64_t n_queries = tensors.hidden.size(0);
  const auto options = tensors.hidden.options().dtype(at::kLong);
  if (!exclude.has_value()) return at::empty({n_queries, 0}, options);
  TORCH_CHECK_VALUE(exclude->dim() == 2 && exclude->size(0) == n_queries && exclude->scalar_type() == at::kLong,
                    "exclude must be int64 [Q, E] with Q = ", n_queries, ", got ", exclude->scalar_type(), " ",
                    exclude->sizes());
  const Tensor items = contiguous(*exclude, "exclude", exclude->sizes(), at::kLong, tensors.hidden.device());
  if (items.is_cuda()) {
    return std::get<0>(at::sort(items, /*stable=*/false, /*dim=*/1, /*descending=*/false)).contiguous();
  }
  Tensor sorted = items.clone();  // at::sort would also sort the positions, which takes several times as long
  int64_t* row = sorted.mutable_data_ptr<int64_t>();
  for (const int64_t* end = row + sorted.numel(); row < end; row += sorted.size(1)) {
    std::sort(row, row + sorted.size(1));
  }
  return sorted;
}

// Returns the scores and the items [Q, k] of the k best items of each query, best first.
template <Kernels kernels>
std::tuple<Tensor, Tensor> top_k(const Tensor& hidden, const Tensor& weight, const OptionalTensor& bias, int64_t k,
                                 const OptionalTensor& exclude) {
  const RankingTensors tensors = check_tensors(hidden, weight, bias);
  const int64_t n_queries = hidden.size(0), n_items = weight.size(0);
  TORCH_CHECK_VALUE(1 <= k && k <= n_items, "k=", k, ": choose 1 to ", n_items,
                    ", the number of items in the catalogue");
  const Tensor excluded = sort_excluded(exclude, tensors);
  Tensor scores = at::empty({n_queries, k}, hidden.options());
  Tensor items = at::empty({n_queries, k}, hidden.options().dtype(at::kLong));
  if (n_queries == 0) return {scores, items};
  if constexpr (kernels == Kernels::cuda) {
    cuda::top_k(tensors, excluded, scores, items);
  } else {
    const int64_t* item = excluded.const_data_ptr<int64_t>();
    TORCH_CHECK_VALUE(std::all_of(item, item + excluded.numel(), [&](int64_t i) { return i >= -1 && i < n_items; }),
                      "exclude out of range: items are 0 to ", n_items - 1, ", padding is -1");
    AT_DISPATCH_FLOATING_TYPES(hidden.scalar_type(), "top_k", [&] {
      select_top_k(make_ranking_arguments<scalar_t>(tensors), k, item, excluded.size(1),
                   scores.mutable_data_ptr<scalar_t>(), items.mutable_data_ptr<int64_t>());
    });
  }
  return {scores, items};
}

GRF_REGISTER(target_rank)
GRF_REGISTER(top_k)

}  // namespace
}  // namespace grf
