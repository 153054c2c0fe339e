// Launcher of the optimizer steps on rows. Specification: gru4rec_fast/reference/sparse_update.py.
#pragma once

#include <cstdint>

#include "common/stream.h"
#include "sparse_update/update_rules.h"

namespace grf::cuda {

template <typename T>
struct TouchedRows {
  const int64_t* rows;       // [n], rising; -1: none
  const int64_t* positions;  // [n], where in `grad` each row's is; of equal rows rising
  const T* grad;             // [n, width]
  int64_t n, n_rows, width;
  T *weight, *first, *second;  // [n_rows, width], updated; null where the rule has no such state, or does not keep it
};

template <typename T, template <typename> class Options>
void update_rows(const TouchedRows<T>& touched, const Options<T>& options, cudaStream_t stream);

}  // namespace grf::cuda
