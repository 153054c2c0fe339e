// BPR triples on the CPU. Specification: gru4rec_fast/ops/bpr_triples.py.
//
// Threads take ranges of triples. Drawing a triple takes two Philox calls and a chain of dependent random reads.
// Bottleneck: the latency of these reads. Vector instructions would not help, so the code is not compiled for several
// instruction sets.
#include <ATen/Parallel.h>
#include <c10/util/Exception.h>

#include <atomic>

#include "bpr_triples/draw.h"

namespace grf {

constexpr int64_t kGrain = 256;  // minimum number of triples per thread

void draw_triples(const TripleArguments& args) {
  const auto draw_one = args.neighbors_are_int64 ? draw_triple<int64_t> : draw_triple<int32_t>;
  std::atomic<bool> all_valid{true};
  at::parallel_for(0, args.n, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k) {
      if (!draw_one(args, args.step, k)) all_valid = false;
    }
  });
  TORCH_CHECK_VALUE(
      all_valid,
      "users and starts do not fit the graph: each user must have at least one item but not every item, "
      "a user's neighbors must be items, and starts must be the cumulative sum of the users' degrees, below 2**31");
}

}  // namespace grf
