// A table whose rows an optimizer updates, and the function that launches the CUDA kernel. Specification:
// gru4rec_fast/ops/sparse_update.py.
#pragma once

#include <cstdint>

#include "common/stream.h"
#include "sparse_update/optimizer_options.h"

namespace grf {  // gru4rec_fast

// A parameter [n_rows, width] and its optimizer state of the same shape: the accumulator and velocity of Adagrad, or
// the running means of Adam (see sparse_update/optimizer_options.h). Adagrad without momentum has no velocity: state_2
// is null.
template <typename T>
struct RowTable {
  T *weight, *state_1, *state_2;
  int64_t n_rows, width;
};

namespace cuda {

// Gradients sorted by the row of the table that they belong to: row positions[i] of `grad` is a gradient of row
// sorted_index[i] of the table.
template <typename T>
struct SortedGradients {
  const int64_t* sorted_index;  // [n], increasing, may repeat; -1 is skipped
  const int64_t* positions;     // [n], increasing among equal elements of sorted_index
  const T* grad;                // [n, width]
  int64_t n;
};

// Updates each row of the table that has gradients by the sum of these gradients. Launches one kernel.
template <typename T, template <typename> class Options>
void update_rows(const RowTable<T>& table, const SortedGradients<T>& gradients, const Options<T>& options,
                 cudaStream_t stream);

}  // namespace cuda
}  // namespace grf
