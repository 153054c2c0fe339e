// A table whose rows an optimizer updates, and the launcher of the CUDA kernel. Specification:
// gru4rec_fast/ops/sparse_update.py.
#pragma once

#include <cstdint>

#include "common/stream.h"
#include "sparse_update/update_rules.h"

namespace grf {

// A parameter of `n_rows` rows of `width` numbers, and its state in the order that the rule states; null for what is
// not kept.
template <typename T>
struct RowTable {
  T *weight, *first, *second;
  int64_t n_rows, width;
};

namespace cuda {

template <typename T>
struct TouchedRows {
  const int64_t* rows;       // [n], rising; -1: none
  const int64_t* positions;  // [n], where in `grad` each row's is; of equal rows rising
  const T* grad;             // [n, width]
  int64_t n;
  RowTable<T> table;  // updated
};

template <typename T, template <typename> class Options>
void update_rows(const TouchedRows<T>& touched, const Options<T>& options, cudaStream_t stream);

}  // namespace cuda
}  // namespace grf
