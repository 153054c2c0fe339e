// Draws one BPR triple, on the CPU or in a CUDA kernel. Specification: gru4rec_fast/ops/bpr_triples.py.
#pragma once

#include <cstdint>

#include "bpr_triples/bpr_triples.h"
#include "common/partition_point.h"
#include "common/philox.h"

namespace grf {

// Returns a uniform integer in [0, limit), limit < 2**31, from the two halves of a random 64-bit word.
GRF_HOST_DEVICE int64_t uniform_below(uint32_t high, uint32_t low, int64_t limit) {
  const auto range = static_cast<uint64_t>(limit);
  return static_cast<int64_t>((high * range + (low * range >> 32)) >> 32);
}

// Draws triple k of step `step` and writes it to out[k], out[n + k] and out[2 n + k]. The candidates are the elements
// of `users`, and starts[i], if given, is the number of interactions of all candidates before candidate i. Returns
// false, and writes nothing, if the graph, users or starts are invalid. It reads a user, two offsets and the
// positive item. Bisection reads log2(degree) items and, if starts are given, log2(n_candidates) starts.
template <typename index_t>
GRF_HOST_DEVICE bool draw_triple(const TripleArguments& args, uint32_t step, int64_t k) {
  const auto* neighbors = static_cast<const index_t*>(args.neighbors);
  const auto triple = static_cast<uint32_t>(k);
  const auto words_0 = philox::philox4x32({philox::kStreamTriples, step, triple, 0}, args.seed);
  const auto words_1 = philox::philox4x32({philox::kStreamTriples, step, triple, 1}, args.seed);
  int64_t candidate, positive_index = 0;  // candidate: index in `users`; positive_index: index in the user's items
  if (args.starts == nullptr) {
    candidate = uniform_below(words_0.w0, words_0.w1, args.n_candidates);
  } else {
    const int64_t* starts = args.starts;
    const int64_t total = starts[args.n_candidates];
    if (starts[0] != 0 || total < 1 || total >= int64_t{1} << 31) return false;
    const int64_t interaction = uniform_below(words_0.w0, words_0.w1, total);
    // The interaction belongs to the last candidate i with starts[i] <= interaction.
    candidate = partition_point(args.n_candidates - 1, [&](int64_t i) { return starts[i + 1] <= interaction; });
    if (starts[candidate] < 0 || starts[candidate] > interaction) return false;
    positive_index = interaction - starts[candidate];
  }
  const int64_t user = args.users[candidate];
  if (user < 0 || user >= args.n_users) return false;
  const int64_t begin = args.offsets[user], end = args.offsets[user + 1];
  if (begin < 0 || begin >= end || end > args.n_entries || end - begin >= args.n_items) return false;
  const int64_t degree = end - begin;
  if (args.starts == nullptr) positive_index = uniform_below(words_0.w2, words_0.w3, degree);
  if (positive_index >= degree) return false;
  // The negative item is the rank-th item that the user does not have. The user's i-th item has the number
  // items[i] - n_users, because `neighbors` holds graph nodes. Of the items below this number, the user has i and lacks
  // items[i] - n_users - i. This difference never decreases with i, so bisection finds how many of the user's items
  // have a lower number than the negative item. The condition does not compute the difference, which could overflow for
  // an invalid items[i].
  const int64_t rank = uniform_below(words_1.w0, words_1.w1, args.n_items - degree);
  const index_t* items = neighbors + begin;
  const int64_t n_lower_items =
      partition_point(degree, [&](int64_t i) { return static_cast<int64_t>(items[i]) <= args.n_users + i + rank; });
  const auto positive = static_cast<int64_t>(items[positive_index]);
  if (positive < args.n_users || positive >= args.n_users + args.n_items) return false;
  args.out[k] = user;
  args.out[args.n + k] = positive - args.n_users;
  args.out[2 * args.n + k] = rank + n_lower_items;
  return true;
}

}  // namespace grf
