// Draws of negative items from an alias table, on the CPU. Specification: gru4rec_fast/ops/negative_sampling.py.
#include "negative_sampling/negative_sampling.h"

#include <ATen/Parallel.h>
#include <c10/util/Exception.h>

#include <algorithm>

#include "common/philox.h"

#define GRF_KERNEL "negative_sampling/cpu_kernel.inc"
#include "common/foreach_isa.h"

namespace grf {

void draw_negatives(const NegativeDraws& draws) {
  const auto draw = GRF_DISPATCH(draw_from_step);
  constexpr int64_t kGrain = 4096;  // minimum number of draws per thread
  const int64_t n = draws.n;
  at::parallel_for(0, draws.steps * n, kGrain, [&](int64_t begin, int64_t end) {
    while (begin < end) {  // an iteration makes the draws of one step t
      const int64_t t = begin / n;
      const int64_t end_in_step = std::min(end, (t + 1) * n);
      const bool valid =
          draw(draws.items + t * n, draws.log_prob == nullptr ? nullptr : draws.log_prob + t * n, begin - t * n,
               end_in_step - t * n, draws.first_step + static_cast<uint32_t>(t), draws.seed, draws.threshold,
               draws.alias, draws.table_log_prob, static_cast<uint32_t>(draws.n_items));
      TORCH_CHECK_INDEX(valid, "alias: holds numbers outside [0, ", draws.n_items, "), the range of items");
      begin = end_in_step;
    }
  });
}

}  // namespace grf
