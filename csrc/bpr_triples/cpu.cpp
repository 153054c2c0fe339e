// Triples for BPR on the CPU. Specification: gru4rec_fast/ops/bpr_triples.py.
//
// A triple is two Philox calls and a few dependent look-ups in the graph: bound by memory, so there is one copy for all
// instruction sets.
#include "bpr_triples/bpr_triples.h"

#include <ATen/Parallel.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "common/partition_point.h"
#include "common/philox.h"

namespace grf {
namespace {

constexpr int64_t kLimit = int64_t{1} << 31;
constexpr int64_t kGrain = 256;  // triples that are worth a thread

// A number in [0, limit) from two words.
int64_t below(uint32_t high, uint32_t low, int64_t limit) {
  const auto range = static_cast<uint64_t>(limit);
  return static_cast<int64_t>((high * range + (low * range >> 32)) >> 32);
}

// How many k < degree there are with items[k] - k <= rank; items rise.
template <typename index_t>
int64_t seen_before(const index_t* items, int64_t degree, int64_t rank) {
  return partition_point(degree, [&](int64_t k) { return items[k] - k <= rank; });
}

// Writes triple k to out[k], out[n + k], out[2 n + k]; false where its candidate does not fit the graph.
template <typename index_t>
bool draw(const TripleDraws& draws, int64_t k) {
  const auto* neighbours = static_cast<const index_t*>(draws.neighbours);
  const int64_t n = draws.n;
  int64_t* out = draws.out;
  const auto number = static_cast<uint32_t>(k);
  const auto first = philox::philox4x32({philox::kStreamTriples, draws.step, number, 0}, draws.seed);
  const auto second = philox::philox4x32({philox::kStreamTriples, draws.step, number, 1}, draws.seed);
  int64_t candidate, positive = 0;
  if (draws.starts == nullptr) {
    candidate = below(first.w0, first.w1, draws.n_candidates);
  } else {
    const int64_t* end = draws.starts + draws.n_candidates + 1;
    if (draws.starts[0] != 0 || end[-1] < 1 || end[-1] >= kLimit) return false;
    const int64_t interaction = below(first.w0, first.w1, end[-1]);
    candidate = std::upper_bound(draws.starts, end, interaction) - draws.starts - 1;
    if (candidate < 0 || candidate >= draws.n_candidates) return false;
    positive = interaction - draws.starts[candidate];
  }
  const int64_t user = draws.users[candidate];
  if (user < 0 || user >= draws.n_users) return false;
  const int64_t begin = draws.offsets[user], degree = draws.offsets[user + 1] - begin;
  if (begin < 0 || degree < 1 || degree >= draws.n_items || begin + degree > draws.n_entries) return false;
  if (draws.starts == nullptr) positive = below(first.w2, first.w3, degree);
  if (positive >= degree) return false;
  const int64_t rank = below(second.w0, second.w1, draws.n_items - degree);
  out[k] = user;
  out[n + k] = neighbours[begin + positive] - draws.n_users;
  out[2 * n + k] = rank + seen_before(neighbours + begin, degree, rank + draws.n_users);
  return true;
}

}  // namespace

void draw_triples(const TripleDraws& draws) {
  const auto draw_one = draws.neighbours_are_wide ? draw<int64_t> : draw<int32_t>;
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
