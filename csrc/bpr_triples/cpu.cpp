// Triples for BPR on the CPU. Specification: gru4rec_fast/ops/bpr_triples.py.
//
// A triple is two Philox calls and a few dependent look-ups in the graph: bound by memory, so there is one copy for all
// instruction sets.
#include <ATen/Parallel.h>
#include <c10/util/Exception.h>

#include <atomic>

#include "bpr_triples/draw.h"

namespace grf {

constexpr int64_t kGrain = 256;  // triples per thread at least

void draw_triples(const TripleDraws& draws) {
  const auto draw_one = draws.neighbors_are_wide ? draw_triple<int64_t> : draw_triple<int32_t>;
  std::atomic<bool> fits{true};
  at::parallel_for(0, draws.n, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k) {
      if (!draw_one(draws, k)) fits = false;
    }
  });
  TORCH_CHECK_VALUE(fits,
                    "users and starts do not fit the graph: draw from users that have an item and have not all items, "
                    "starts being the running sum of their degrees, below 2**31");
}

}  // namespace grf
