// The operators build_alias_table (CPU only) and negative_sampling: check arguments and allocate results. Also builds
// the alias table. Specification: gru4rec_fast/ops/negative_sampling.py.
#include "negative_sampling/negative_sampling.h"

#include <ATen/ops/empty.h>

#include <tuple>
#include <vector>

#include "common/checks.h"
#include "common/device.h"
#include "common/operator.h"

namespace grf {
namespace {

// The alias table has a column per item, with a threshold and an alias (another item). An item's mass is its
// probability in units of 1 / (n_items * kColumnMass). Every column has the mass kColumnMass, of which the part
// `threshold` belongs to the column's own item, and the rest to the alias.
constexpr int64_t kColumnMass = int64_t{1} << 31;

// Raises ValueError unless `tensor` has one value of type `dtype` for each item.
void check_column(const at::Tensor& tensor, const char* name, at::ScalarType dtype, int64_t n_items) {
  TORCH_CHECK_VALUE(tensor.dim() == 1 && tensor.scalar_type() == dtype && tensor.size(0) == n_items, name, " must be ",
                    dtype, " [", n_items, "], not ", tensor.scalar_type(), " ", tensor.sizes());
}

void check_catalogue(int64_t n_items) {
  TORCH_CHECK_VALUE(n_items >= 1 && n_items < kColumnMass, n_items,
                    " items: an alias table must have at least one item and fewer than 2**31 items");
}

std::tuple<at::Tensor, at::Tensor> build_alias_table(const at::Tensor& mass) {
  check_column(mass, "mass", at::kLong, mass.numel());
  const int64_t n_items = mass.numel();
  check_catalogue(n_items);
  const at::Tensor threshold_tensor = mass.clone(at::MemoryFormat::Contiguous);  // holds the masses at first
  const at::Tensor alias_tensor = at::empty({n_items}, mass.options());
  int64_t* threshold = threshold_tensor.mutable_data_ptr<int64_t>();
  int64_t* alias = alias_tensor.mutable_data_ptr<int64_t>();

  int64_t unassigned = n_items * kColumnMass;
  std::vector<int64_t> small, large;  // items with less mass than kColumnMass, and all other items
  for (int64_t item = 0; item < n_items; ++item) {
    TORCH_CHECK_VALUE(threshold[item] >= 0 && threshold[item] <= unassigned, "mass[", item, "]=", threshold[item],
                      ": masses must not be negative and must sum to n_items * 2**31");
    unassigned -= threshold[item];
    alias[item] = item;
    (threshold[item] < kColumnMass ? small : large).push_back(item);
  }
  TORCH_CHECK_VALUE(unassigned == 0, "mass: the sum must be n_items * 2**31, but is less by ", unassigned);

  // Vose's method: take an item with less mass than kColumnMass. A donor, an item with at least this mass, fills up the
  // item's column and becomes the column's alias. The mean mass of the remaining items is always kColumnMass, so
  // `large` is not empty while `small` is not.
  while (!small.empty()) {
    const int64_t column = small.back();
    const int64_t donor = large.back();
    small.pop_back();
    alias[column] = donor;
    threshold[donor] -= kColumnMass - threshold[column];
    if (threshold[donor] < kColumnMass) {
      large.pop_back();
      small.push_back(donor);
    }
  }
  return {threshold_tensor, alias_tensor};
}

// Draws n items for each of `steps` consecutive training steps, of which `step` is the first.
template <Kernels kernels>
std::tuple<at::Tensor, at::Tensor> negative_sampling(const at::Tensor& threshold, const at::Tensor& alias,
                                                     const at::Tensor& log_prob, int64_t n, int64_t seed, int64_t step,
                                                     const std::optional<at::Tensor>& counter, int64_t steps) {
  const at::Device device = threshold.device();
  const int64_t n_items = threshold.numel();
  check_catalogue(n_items);
  check_column(threshold, "threshold", at::kLong, n_items);
  check_column(alias, "alias", at::kLong, n_items);
  check_column(log_prob, "log_prob", at::kFloat, n_items);
  check_counters(seed, step, steps);
  TORCH_CHECK_VALUE(n >= 0 && n <= int64_t{1} << 32, "n=", n, ": must be in [0, 2**32]");
  check_n_elements("steps * n", {steps, n});

  const FirstStep first = first_step<kernels>(step, counter, steps, device);
  const at::Tensor thresholds = threshold.contiguous();
  const at::Tensor aliases = contiguous(alias, "alias", {n_items}, at::kLong, device);
  const at::Tensor log_probs = contiguous(log_prob, "log_prob", {n_items}, at::kFloat, device);
  const at::Tensor items = at::empty({steps, n}, threshold.options());
  const at::Tensor drawn_log_prob = at::empty({steps, n}, log_prob.options());
  const NegativeDraws draws{.threshold = thresholds.const_data_ptr<int64_t>(),
                            .alias = aliases.const_data_ptr<int64_t>(),
                            .table_log_prob = log_probs.const_data_ptr<float>(),
                            .n_items = n_items,
                            .steps = steps,
                            .n = n,
                            .first_step = static_cast<uint32_t>(first.number),
                            .seed = static_cast<uint64_t>(seed),
                            .items = items.mutable_data_ptr<int64_t>(),
                            .log_prob = drawn_log_prob.mutable_data_ptr<float>(),
                            .counter = first.counter};
  if constexpr (kernels == Kernels::cuda) {
    const DeviceGuard guard(device);
    cuda::draw_negatives(draws, current_stream(device));
  } else {
    draw_negatives(draws);
  }
  return {items, drawn_log_prob};
}

GRF_REGISTER_CPU(build_alias_table)
GRF_REGISTER(negative_sampling)

}  // namespace
}  // namespace grf
