// Triples for BPR. Specification: gru4rec_fast/ops/bpr_triples.py.
#pragma once

#include "bpr_triples/bpr_triples.h"
#include "common/partition_point.h"
#include "common/philox.h"
#include "common/simt.cuh"

namespace grf::cuda {

constexpr int kTripleThreads = 128;

// A number in [0, limit), limit < 2**31, from two words.
__device__ __forceinline__ int64_t number_below(uint32_t high, uint32_t low, int64_t limit) {
  const auto range = static_cast<uint64_t>(limit);
  return static_cast<int64_t>((high * range + (low * range >> 32)) >> 32);
}

// The last i < n with starts[i] <= value; starts rise from 0.
__device__ __forceinline__ int64_t interval_of(const int64_t* starts, int64_t n, int64_t value) {
  return partition_point(n - 1, [&](int64_t i) { return starts[i + 1] <= value; });
}

// How many k < degree there are with items[k] - k <= rank; items rise.
template <typename index_t>
__device__ __forceinline__ int64_t seen_before(const index_t* items, int64_t degree, int64_t rank) {
  return partition_point(degree, [&](int64_t k) { return static_cast<int64_t>(items[k]) - k <= rank; });
}

// Writes triple k to out[k], out[n + k], out[2 n + k].
//
// Launch: one dimension, any number of blocks of any size; each thread takes triples in strides of the grid. A triple
// reads a user, two offsets, an item and the log2(degree) items of a bisection (with starts log2(n_candidates) more),
// at random, and writes 24 bytes, each 8 beside its neighbours'.
template <typename index_t>
__global__ void __launch_bounds__(kTripleThreads) draw_triples_kernel(TripleDraws draws) {
#define GRF_FITS(condition)                                                                                 \
  GRF_DEVICE_CHECK(condition,                                                                               \
                   "users and starts do not fit the graph: draw from users that have an item and have not " \
                   "all items, starts being the running sum of their degrees, below 2**31")
  const auto* neighbours = static_cast<const index_t*>(draws.neighbours);
  for (int64_t k = global_thread(); k < draws.n; k += all_threads()) {
    const auto number = static_cast<uint32_t>(k);
    const auto first = philox::philox4x32({philox::kStreamTriples, draws.step, number, 0}, draws.seed);
    const auto second = philox::philox4x32({philox::kStreamTriples, draws.step, number, 1}, draws.seed);
    int64_t candidate, positive = 0;
    if (draws.starts == nullptr) {
      candidate = number_below(first.w0, first.w1, draws.n_candidates);
    } else {
      const int64_t total = draws.starts[draws.n_candidates];
      GRF_FITS(draws.starts[0] == 0 && total >= 1 && total < int64_t{1} << 31);
      const int64_t interaction = number_below(first.w0, first.w1, total);
      candidate = interval_of(draws.starts, draws.n_candidates, interaction);
      positive = interaction - draws.starts[candidate];
    }
    const int64_t user = draws.users[candidate];
    GRF_FITS(user >= 0 && user < draws.n_users);
    const int64_t begin = draws.offsets[user], degree = draws.offsets[user + 1] - begin;
    GRF_FITS(begin >= 0 && degree >= 1 && degree < draws.n_items && begin + degree <= draws.n_entries);
    if (draws.starts == nullptr) positive = number_below(first.w2, first.w3, degree);
    GRF_FITS(positive >= 0 && positive < degree);
    const int64_t rank = number_below(second.w0, second.w1, draws.n_items - degree);
    draws.out[k] = user;
    draws.out[draws.n + k] = static_cast<int64_t>(neighbours[begin + positive]) - draws.n_users;
    draws.out[2 * draws.n + k] = rank + seen_before(neighbours + begin, degree, rank + draws.n_users);
  }
#undef GRF_FITS
}

}  // namespace grf::cuda
