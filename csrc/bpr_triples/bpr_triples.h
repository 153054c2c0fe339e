// Draws of triples for BPR on raw pointers. Specification: gru4rec_fast/ops/bpr_triples.py.
#pragma once

#include <cstdint>

#include "common/stream.h"

namespace grf {

struct TripleDraws {
  const int64_t* offsets;  // [n_users + n_items + 1]
  const void* neighbors;  // [n_entries] of int32 or int64
  bool neighbors_are_wide;
  int64_t n_entries;
  const int64_t* users;  // [n_candidates]
  int64_t n_candidates;
  const int64_t* starts;  // [n_candidates + 1], or null: users are drawn, not interactions
  int64_t n_users, n_items;
  uint64_t seed;
  uint32_t step;
  int64_t n;
  int64_t* out;  // [3, n], written
};

// ValueError where users and starts do not fit the graph; on CUDA the kernel stops.
void draw_triples(const TripleDraws& draws);

namespace cuda {

void draw_triples(const TripleDraws& draws, cudaStream_t stream);

}  // namespace cuda
}  // namespace grf
