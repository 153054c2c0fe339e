// Random triples (user, positive item, negative item) for training by Bayesian personalized ranking (BPR), on raw
// pointers. The user has interacted with the positive item, but not with the negative one. Specification:
// gru4rec_fast/ops/bpr_triples.py.
#pragma once

#include <cstdint>

#include "common/stream.h"

namespace grf {  // gru4rec_fast

// The graph and what to draw from it. The graph is in CSR form: nodes 0 .. n_users - 1 are users, and the next n_items
// nodes are items.
struct TripleArguments {
  const int64_t* offsets;  // [n_users + n_items + 1]
  const void* neighbors;   // [n_entries], int32 or int64; the neighbors of each node are increasing
  bool neighbors_are_int64;
  int64_t n_entries;
  const int64_t* users;  // [n_candidates]: the users for whom triples are drawn
  int64_t n_candidates;
  // If null, the user of a triple is drawn uniformly, and then the positive item uniformly from the user's items.
  // Otherwise starts [n_candidates + 1] are the cumulative degrees of `users`. Then a pair of a user and one of the
  // user's items is drawn uniformly.
  const int64_t* starts;
  int64_t n_users, n_items;
  uint64_t seed;
  uint32_t step;
  int64_t n;                         // number of triples
  int64_t* out;                      // [3, n], written: users, positive items, negative items
  const int64_t* counter = nullptr;  // CUDA: its value is added to the step; null: nothing is added
};

// Draws triples on the CPU. Raises ValueError if users or starts are invalid for the graph.
void draw_triples(const TripleArguments& args);

namespace cuda {

// Draws triples on CUDA. If users or starts are invalid for the graph, a device-side assertion fails.
void draw_triples(const TripleArguments& args, cudaStream_t stream);

}  // namespace cuda
}  // namespace grf
