// A table whose rows an optimizer updates, and the function that launches the CUDA kernel. Specification:
// gru4rec_fast/ops/sparse_update.py.
#pragma once

#include <cstdint>

#include "common/stream.h"
#include "sparse_update/update_rules.h"

namespace grf {

// A parameter [n_rows, width] and its optimizer state of the same shape, in the order of sparse_update/update_rules.h.
// State that is not kept is null.
template <typename T>
struct RowTable {
  T *weight, *state_1, *state_2;
  int64_t n_rows, width;
};

namespace cuda {

// The rows to update and their gradients: that of rows[i] is row positions[i] of `grad`.
template <typename T>
struct TouchedRows {
  const int64_t* rows;       // [n], increasing, may repeat; -1 is skipped
  const int64_t* positions;  // [n], increasing within equal rows
  const T* grad;             // [n, width]
  int64_t n;
  RowTable<T> table;  // updated
};

template <typename T, template <typename> class Options>
void update_rows(const TouchedRows<T>& touched, const Options<T>& options, cudaStream_t stream);

}  // namespace cuda
}  // namespace grf
