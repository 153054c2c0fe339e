// One draw of a triple for BPR, on the CPU and in the CUDA kernel. Specification: gru4rec_fast/ops/bpr_triples.py.
#pragma once

#include <cstdint>

#include "bpr_triples/bpr_triples.h"
#include "common/partition_point.h"
#include "common/philox.h"

namespace grf {

// Returns a number in [0, limit), limit < 2**31, from two words.
GRF_HOST_DEVICE int64_t number_below(uint32_t high, uint32_t low, int64_t limit) {
  const auto range = static_cast<uint64_t>(limit);
  return static_cast<int64_t>((high * range + (low * range >> 32)) >> 32);
}

// Writes triple k to out[k], out[n + k], out[2 n + k]; false where its candidate does not fit the graph. A triple reads
// a user, two offsets, an item and, by bisection, log2(degree) items and log2(n_candidates) starts.
template <typename index_t>
GRF_HOST_DEVICE bool draw_triple(const TripleDraws& draws, int64_t k) {
  const auto* neighbors = static_cast<const index_t*>(draws.neighbors);
  const auto number = static_cast<uint32_t>(k);
  const auto first = philox::philox4x32({philox::kStreamTriples, draws.step, number, 0}, draws.seed);
  const auto second = philox::philox4x32({philox::kStreamTriples, draws.step, number, 1}, draws.seed);
  int64_t candidate, positive = 0;
  if (draws.starts == nullptr) {
    candidate = number_below(first.w0, first.w1, draws.n_candidates);
  } else {
    const int64_t* starts = draws.starts;
    const int64_t total = starts[draws.n_candidates];
    if (starts[0] != 0 || total < 1 || total >= int64_t{1} << 31) return false;
    const int64_t interaction = number_below(first.w0, first.w1, total);
    // The last candidate whose interactions start at or before this one.
    candidate = partition_point(draws.n_candidates - 1, [&](int64_t i) { return starts[i + 1] <= interaction; });
    positive = interaction - starts[candidate];
  }
  const int64_t user = draws.users[candidate];
  if (user < 0 || user >= draws.n_users) return false;
  const int64_t begin = draws.offsets[user], degree = draws.offsets[user + 1] - begin;
  if (begin < 0 || degree < 1 || degree >= draws.n_items || begin + degree > draws.n_entries) return false;
  if (draws.starts == nullptr) positive = number_below(first.w2, first.w3, degree);
  if (positive < 0 || positive >= degree) return false;
  // The rank-th item that is not among the user's: as many of these, which rise, lie before it as have a lower rank.
  const int64_t rank = number_below(second.w0, second.w1, draws.n_items - degree);
  const index_t* items = neighbors + begin;
  const int64_t seen =
      partition_point(degree, [&](int64_t i) { return static_cast<int64_t>(items[i]) - draws.n_users - i <= rank; });
  draws.out[k] = user;
  draws.out[draws.n + k] = static_cast<int64_t>(items[positive]) - draws.n_users;
  draws.out[2 * draws.n + k] = rank + seen;
  return true;
}

}  // namespace grf
