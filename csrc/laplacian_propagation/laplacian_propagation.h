// The product L @ E of a graph's propagation matrix and its nodes' features, on raw pointers. Specification:
// gru4rec_fast/ops/laplacian_propagation.py.
#pragma once

#include <cstdint>

#include "common/stream.h"

namespace grf {  // gru4rec_fast

enum class FeatureDtype { float32, float64, bfloat16 };

// The arguments of out = L[rows][:, columns] @ features (+ addend). Entry (r, c) of L is row_scale[r] * column_scale[c]
// for each edge (r, c) that edge dropout keeps, else 0. Sums and scales have the type Sum: double for float64 features,
// else float.
struct PropagationArguments {
  const void* features;  // [n_nodes, width]; with `columns`: [n_columns, width]
  FeatureDtype dtype;
  int64_t n_nodes, width;
  const int64_t* offsets;  // [n_nodes + 1]
  const void* neighbors;   // [n_entries], int32 or int64
  bool neighbors_are_int64;
  int64_t n_entries;
  const int64_t* rows;  // [n_rows] nodes whose results are computed; null: all nodes
  int64_t n_rows;
  const int64_t* columns;  // [n_columns] nodes whose features are given
  int64_t n_columns;       // -1: the features of all nodes are given
  // row_scale = dropout_scale * degree ** row_exponent; column_scale = degree ** column_exponent
  double row_exponent, column_exponent, dropout_scale;
  bool adds_identity;  // for A + I: each node is also its own neighbor, and its degree is one more
  // For the product with L^T. It affects only edge dropout: entry (r, c) is dropped if entry (c, r) of L is. The caller
  // swaps the exponents.
  bool transposed;
  uint32_t drop_threshold;  // an entry is kept if its Philox word is at least the threshold; 0: no dropout
  uint32_t step;
  uint64_t seed;
  const int64_t* counter;  // CUDA: its value is added to the step; null: nothing is added
  // A matrix that is added; null: nothing. Its rows belong to the same nodes as those of `features`. The row of node
  // rows[i], if there is one, is added to out[i].
  const void* addend;
  void* out;  // [n_rows, width], written

  // Workspace of the CUDA kernels; null on the CPU. A row of many entries is long: it is cut into segments.
  void* row_scale = nullptr;        // Sum [n_nodes]
  void* column_scale = nullptr;     // Sum [n_nodes]
  int32_t* feature_rows = nullptr;  // [n_nodes]: each node's row in `features`, -1 if not given; null without `columns`
  void* segment_sums = nullptr;     // Sum [max_segments(n_entries), width]
  int64_t* segments = nullptr;      // [max_segments, 2]: row of the result, index of the segment within this row
  int64_t* long_rows = nullptr;     // [max_segments, 2]: row of the result, index of its first segment in `segments`
  unsigned long long* counts = nullptr;  // [2], initially zero: the numbers of segments and of long rows
};

// Computes the product on the CPU. Raises ValueError if a neighbor is not a node of the graph.
void multiply_matrix(const PropagationArguments& args);

namespace cuda {

// A row is long if it has more than kSegmentEntries entries. It is cut into segments of kSegmentEntries entries, which
// different warps sum. Without segments, one warp would sum a hub of a power-law graph long after all other warps have
// finished. The segments depend only on the row's length, so a row's result has the same bits in every call.
#ifdef GRF_EMULATED
constexpr int64_t kSegmentEntries = 96;  // so that the small graphs of tests have long rows
#else
constexpr int64_t kSegmentEntries = 1024;
#endif

// Returns an upper bound of the number of segments of all long rows together: at least half of the segments of a long
// row have kSegmentEntries entries.
inline int64_t max_segments(int64_t n_entries) {
  return 2 * (n_entries / kSegmentEntries);
}

// Launches the kernels that compute the product on CUDA. A device-side assertion fails if an index is invalid.
void multiply_matrix(const PropagationArguments& args, cudaStream_t stream);

}  // namespace cuda
}  // namespace grf
