// The product L @ E of a graph's propagation matrix L and its nodes' features E on the CPU. Specification:
// gru4rec_fast/ops/laplacian_propagation.py.
//
// The rows are divided among threads so that all threads get about the same number of entries. With equal numbers of
// rows, the thread that gets a hub of a power-law graph would finish last. One thread sums a whole row, so the result
// has the same bits for any number of threads.
#include "laplacian_propagation/laplacian_propagation.h"

#include <ATen/Parallel.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <type_traits>
#include <utility>
#include <vector>

#include "common/partition_point.h"
#include "common/philox.h"
#include "common/simd.h"

#if GRF_X86_ISAS
#include <immintrin.h>
#endif

namespace grf {
namespace {

// The type of sums: float for bfloat16 (stored as its bits, uint16_t), else T.
template <typename T>
using SumOf = std::conditional_t<std::is_same_v<T, uint16_t>, float, T>;

// PropagationArguments in the form that the kernel reads: typed pointers, and scales computed from the degrees.
template <typename T>
struct KernelArguments {
  const T* features;  // [n_nodes, width]; with `columns`: [n_columns, width]
  int64_t n_nodes, width;
  const int64_t* offsets;         // [n_nodes + 1]
  const int64_t* rows;            // [n_rows] nodes whose results are computed; null: all nodes
  const int32_t* feature_rows;    // [n_nodes] each node's row in `features`, -1 if it has none; null: row i is node i
  const SumOf<T>* row_scale;      // [n_nodes]
  const SumOf<T>* feature_scale;  // [rows of `features`] scale of the matrix column of each node; null: all are 1
  const T* addend;                // added to the result; like `features`, or null
  bool adds_identity;
  bool transposed;
  bool prefetches;  // true if the features exceed the cache; then the kernel prefetches them
  uint32_t drop_threshold, step;
  uint64_t seed;
};

}  // namespace
}  // namespace grf

#define GRF_KERNEL "laplacian_propagation/cpu_kernel.inc"
#include "common/foreach_isa.h"

namespace grf {
namespace {

constexpr int64_t kGrain = 1 << 16;                     // minimum number of multiply-adds, or of nodes, per thread
constexpr int64_t kMaxBytesInCache = int64_t{1} << 25;  // larger features are prefetched

// Returns factor * degree ** exponent for each node. The exponent is 0, -1 or -0.5. A node of degree 0 gets 0, unless
// the exponent is 0.
template <typename Sum>
std::vector<Sum> scales_from_degrees(const PropagationArguments& args, double exponent, double factor) {
  const int64_t* offset = args.offsets;
  std::vector<Sum> scale(args.n_nodes);
  at::parallel_for(0, static_cast<int64_t>(scale.size()), kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t node = begin; node < end; ++node) {
      const auto degree = static_cast<double>(offset[node + 1] - offset[node] + (args.adds_identity ? 1 : 0));
      const double power = exponent == 0 ? 1 : exponent == -1 ? 1 / degree : 1 / std::sqrt(degree);
      scale[node] = static_cast<Sum>(degree == 0 && exponent != 0 ? 0 : factor * power);
    }
  });
  return scale;
}

// The rows to compute. starts[i] is the number of entries in the first i rows together.
struct RowStarts {
  const int64_t* starts;  // [n_rows + 1]
  int64_t n_rows;
};

// Returns the first row that begins at work unit `unit` or later. A row has one unit of work for each of its entries,
// and one more, since writing a result row takes about as long as adding an entry.
int64_t first_row_from(const RowStarts& rows, int64_t unit) {
  return partition_point(rows.n_rows, [&](int64_t row) { return rows.starts[row] + row < unit; });
}

template <typename T, typename index_t>
void multiply(const KernelArguments<T>& args, const RowStarts& rows, const void* neighbors, void* out) {
  const auto multiply_range = GRF_DISPATCH(multiply_rows<T, index_t>);
  const auto* columns = static_cast<const index_t*>(neighbors);
  auto* results = static_cast<T*>(out);
  const int64_t n_units = rows.starts[rows.n_rows] + rows.n_rows;
  std::atomic<int64_t> invalid_entry{-1};
  at::parallel_for(0, n_units, std::max<int64_t>(1, kGrain / std::max<int64_t>(1, args.width)),
                   [&](int64_t first_unit, int64_t end_unit) {
                     std::vector<SumOf<T>> sums(args.width);
                     const int64_t begin = first_row_from(rows, first_unit);
                     const int64_t end = first_row_from(rows, end_unit);
                     const int64_t entry = multiply_range(args, columns, begin, end, sums.data(), results);
                     if (entry >= 0) invalid_entry = entry;
                   });
  const int64_t entry = invalid_entry;
  TORCH_CHECK_VALUE(entry < 0, "neighbors[", entry, "]=", columns[entry], ": the graph has nodes 0 to ",
                    args.n_nodes - 1);
}

// The index arrays that the kernel needs for a submatrix. `starts` is empty if all rows are computed. feature_rows is
// empty if all columns are used.
struct SubmatrixIndex {
  std::vector<int64_t> starts;
  std::vector<int32_t> feature_rows;
  RowStarts rows;

  explicit SubmatrixIndex(const PropagationArguments& args) : rows{args.offsets, args.n_rows} {
    const int64_t* offset = args.offsets;
    if (args.rows != nullptr) {
      starts.resize(args.n_rows + 1);
      for (int64_t i = 0; i < args.n_rows; ++i) {
        starts[i + 1] = starts[i] + offset[args.rows[i] + 1] - offset[args.rows[i]];
      }
      rows = {starts.data(), args.n_rows};
    }
    if (args.n_columns >= 0) {
      feature_rows.assign(args.n_nodes, -1);
      for (int64_t i = 0; i < args.n_columns; ++i) feature_rows[args.columns[i]] = static_cast<int32_t>(i);
    }
  }
};

template <typename T>
void multiply(const PropagationArguments& args) {
  using Sum = SumOf<T>;
  const SubmatrixIndex index(args);
  const auto row_scale = scales_from_degrees<Sum>(args, args.row_exponent, args.dropout_scale);
  std::vector<Sum> feature_scale;
  if (args.column_exponent != 0) feature_scale = scales_from_degrees<Sum>(args, args.column_exponent, /*factor=*/1);
  if (args.column_exponent != 0 && args.n_columns >= 0) {
    // This works in place: `columns` increases, so columns[i] >= i, and no scale is overwritten before it is read.
    for (int64_t i = 0; i < args.n_columns; ++i) feature_scale[i] = feature_scale[args.columns[i]];
  }
  const int64_t n_features = args.n_columns < 0 ? args.n_nodes : args.n_columns;
  const int64_t feature_bytes = n_features * args.width * static_cast<int64_t>(sizeof(T));
  const KernelArguments<T> kernel_args{.features = static_cast<const T*>(args.features),
                                       .n_nodes = args.n_nodes,
                                       .width = args.width,
                                       .offsets = args.offsets,
                                       .rows = args.rows,
                                       .feature_rows = index.feature_rows.empty() ? nullptr : index.feature_rows.data(),
                                       .row_scale = row_scale.data(),
                                       .feature_scale = feature_scale.empty() ? nullptr : feature_scale.data(),
                                       .addend = static_cast<const T*>(args.addend),
                                       .adds_identity = args.adds_identity,
                                       .transposed = args.transposed,
                                       .prefetches = feature_bytes > kMaxBytesInCache,
                                       .drop_threshold = args.drop_threshold,
                                       .step = args.step,
                                       .seed = args.seed};
  if (args.neighbors_are_int64) {
    multiply<T, int64_t>(kernel_args, index.rows, args.neighbors, args.out);
  } else {
    multiply<T, int32_t>(kernel_args, index.rows, args.neighbors, args.out);
  }
}

}  // namespace

void multiply_matrix(const PropagationArguments& args) {
  switch (args.dtype) {
    case FeatureDtype::float32:
      return multiply<float>(args);
    case FeatureDtype::float64:
      return multiply<double>(args);
    case FeatureDtype::bfloat16:
      return multiply<uint16_t>(args);
  }
}

}  // namespace grf
