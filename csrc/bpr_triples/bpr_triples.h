// BPR triples (user, item of the user, item not of the user) on raw pointers. Specification:
// gru4rec_fast/ops/bpr_triples.py.
#pragma once

#include <cstdint>

#include "common/stream.h"

namespace grf {

struct TripleArguments {
  const int64_t* offsets;  // [n_users + n_items + 1]
  const void* neighbors;   // [n_entries], int32 or int64, increasing within a row
  bool neighbors_are_int64;
  int64_t n_entries;
  const int64_t* users;  // [n_candidates] users to draw from
  int64_t n_candidates;
  // [n_candidates + 1], the cumulative degrees of `users`: draws interactions uniformly; null: draws users uniformly
  const int64_t* starts;
  int64_t n_users, n_items;
  uint64_t seed;
  uint32_t step;
  int64_t n;     // triples
  int64_t* out;  // [3, n]: users, positives, negatives; written
};

// Raises ValueError if users and starts do not fit the graph. On CUDA, a device-side assertion fails instead.
void draw_triples(const TripleArguments& args);

namespace cuda {

void draw_triples(const TripleArguments& args, cudaStream_t stream);

}  // namespace cuda
}  // namespace grf
