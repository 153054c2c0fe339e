// L @ E on raw pointers. Specification: gru4rec_fast/ops/laplacian_propagation.py.
#pragma once

#include <cstdint>

#include "common/stream.h"

namespace grf {

enum class FeatureType { float32, float64, bfloat16 };

// Entry (row, column) of the matrix is left[row] * right[column], where a Philox word reaches the threshold.
struct LaplacianProduct {
  const void* features;  // [n_nodes, width], or [n_columns, width]
  FeatureType type;
  int64_t n_nodes, width;
  const int64_t* offsets;  // [n_nodes + 1]
  const void* neighbors;  // [n_entries] of int32 or int64
  bool neighbors_are_wide;
  int64_t n_entries;
  const int64_t* rows;  // [n_rows], or null: all nodes
  int64_t n_rows;
  const int64_t* columns;                        // [n_columns]
  int64_t n_columns;                             // -1: all nodes
  double left_exponent, right_exponent, factor;  // left: factor * degree ** exponent
  bool diagonal;                                 // of D + I, with an entry (row, row)
  bool transposed;                               // the mask of (column, row)
  uint32_t threshold, step;                      // threshold 0: nothing is dropped
  uint64_t seed;
  const void* added;  // like features: the row of a node is added to its result; or null
  void* out;          // [n_rows, width], written

  // Workspace of the CUDA kernels, null on the CPU; `sums` are double for float64 features, else float.
  void* left;                  // sums [n_nodes]
  void* right;                 // sums [n_nodes]
  int32_t* positions;          // [n_nodes] of -1, where there are columns
  void* partials;              // sums [most_segments(n_entries), width]
  int64_t* segments;           // [most_segments, 2]: row of the result, number of the segment
  int64_t* long_rows;          // [most_segments, 2]: row of the result, its first segment
  unsigned long long* counts;  // [2] of 0: segments, long rows
};

// Multiplies on the CPU. Checks the neighbors: ValueError.
void multiply_laplacian(const LaplacianProduct& product);

namespace cuda {

// Rows of more entries than this are cut into segments of so many, which different warps sum: else the hubs of a
// power-law graph would hold up everything. A property of the row alone, so that its sum is, too.
#ifdef GRF_EMULATED
constexpr int64_t kLaplacianSegment = 96;  // small graphs have to have such rows
#else
constexpr int64_t kLaplacianSegment = 1024;
#endif

// How many segments all rows together are cut into at most.
inline int64_t most_segments(int64_t n_entries) {
  return 2 * (n_entries / kLaplacianSegment);
}

void multiply_laplacian(const LaplacianProduct& product, cudaStream_t stream);

}  // namespace cuda
}  // namespace grf
