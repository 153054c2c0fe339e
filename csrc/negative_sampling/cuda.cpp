// Draws from an alias table on CUDA. Specification: gru4rec_fast/reference/negative_sampling.py. The table itself is
// built on the CPU (negative_sampling/cpu.cpp), once.
#include "negative_sampling/cuda.h"

#include <ATen/ops/empty.h>

#include <tuple>

#include "common/checks.h"
#include "common/device.h"

namespace grf::cuda {
namespace {

std::tuple<at::Tensor, at::Tensor> negative_sampling(const at::Tensor& threshold, const at::Tensor& alias,
                                                     const at::Tensor& log_prob, int64_t n, int64_t seed, int64_t step,
                                                     int64_t steps) {
  const at::Device device = threshold.device();
  const int64_t n_items = threshold.numel();
  TORCH_CHECK_VALUE(n_items >= 1 && n_items < int64_t{1} << 31, n_items,
                    " items: an alias table needs at least one and fewer than 2**31");
  const at::Tensor thresholds = contiguous_on(device, threshold, "threshold", {n_items}, at::kLong);
  const at::Tensor aliases = contiguous_on(device, alias, "alias", {n_items}, at::kLong);
  const at::Tensor log_probs = contiguous_on(device, log_prob, "log_prob", {n_items}, at::kFloat);
  check_counters(seed, step, steps);
  TORCH_CHECK_VALUE(n >= 0 && n <= int64_t{1} << 32, "n=", n, ": must be in [0, 2**32]");

  const DeviceGuard guard(device);
  const at::Tensor items = at::empty({steps, n}, threshold.options());
  const at::Tensor item_log_prob = at::empty({steps, n}, log_prob.options());
  const NegativeDraws draws{thresholds.const_data_ptr<int64_t>(),
                            aliases.const_data_ptr<int64_t>(),
                            log_probs.const_data_ptr<float>(),
                            n_items,
                            steps,
                            n,
                            static_cast<uint32_t>(step),
                            static_cast<uint64_t>(seed),
                            items.mutable_data_ptr<int64_t>(),
                            item_log_prob.mutable_data_ptr<float>()};
  draw_negatives(draws, current_stream(device));
  return {items, item_log_prob};
}

GRF_DEVICE_IMPL(m) {
  m.impl("negative_sampling", &negative_sampling);
}

}  // namespace
}  // namespace grf::cuda
