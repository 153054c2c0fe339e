// Draws from an alias table on raw pointers. Specification: gru4rec_fast/reference/negative_sampling.py.
#pragma once

#include <cstdint>

namespace grf {

struct AliasTable {
  const int64_t *threshold, *alias;
  const float* log_prob;
  int64_t n_items;  // fewer than 2**31
};

// items [steps, n] and, unless null, their log-probabilities [steps, n]; steps from `step` on. IndexError where an
// alias is no item.
void draw_negatives(const AliasTable& table, int64_t n, int64_t steps, int64_t seed, int64_t step, int64_t* items,
                    float* log_prob);

}  // namespace grf
