// The product L @ E on the CPU. Specification: gru4rec_fast/ops/laplacian_propagation.py.
//
// Threads divide the entries among themselves, not the rows: otherwise the thread of a power-law graph's hub would
// finish last. A row is never divided, so its sum has the order, and the bits, of a run with one thread.
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

// The type that sums have: float for bfloat16 (stored as uint16_t bits), else T.
template <typename T>
using SumOf = std::conditional_t<std::is_same_v<T, uint16_t>, float, T>;

// PropagationArguments as the kernel reads them: typed, the scales of rows and columns computed.
template <typename T>
struct KernelArguments {
  const T* features;  // [n_nodes, width], or [n_columns, width]
  int64_t n_nodes, width;
  const int64_t* offsets;         // [n_nodes + 1]
  const int64_t* rows;            // [n_rows] nodes whose results are computed; null: all nodes
  const int32_t* feature_rows;    // [n_nodes] each node's row in `features`, -1 if not given; null: all, in order
  const SumOf<T>* row_scale;      // [n_nodes]
  const SumOf<T>* feature_scale;  // the column scale of the node of each row of `features`; null: 1
  const T* addend;                // null, or as `features`
  bool adds_identity;
  bool transposed;
  bool prefetches;  // features are larger than any cache: prefetch the rows of a chunk of entries before adding them
  uint32_t drop_threshold, step;
  uint64_t seed;
};

}  // namespace
}  // namespace grf

#define GRF_KERNEL "laplacian_propagation/cpu_kernel.inc"
#include "common/foreach_isa.h"

namespace grf {
namespace {

constexpr int64_t kGrain = 1 << 16;                       // multiply-adds: the least work for a thread
constexpr int64_t kPrefetchFromBytes = int64_t{1} << 25;  // size of the features

// Returns factor * degree ** exponent for each node, 0 for nodes of degree 0 (unless the exponent is 0).
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

// The rows to compute, and where each begins in the total of their entries.
struct RowStarts {
  const int64_t* starts;  // [n_rows + 1]
  int64_t n_rows;
};

// Returns the first row that begins at unit `unit` of work or later. A row counts as one unit more than its entries.
int64_t first_row_from(const RowStarts& rows, int64_t unit) {
  return partition_point(rows.n_rows, [&](int64_t row) { return rows.starts[row] + row < unit; });
}

template <typename T, typename index_t>
void multiply(const KernelArguments<T>& args, const RowStarts& rows, const void* neighbors, void* out) {
  const auto multiply_range = GRF_DISPATCH(multiply_rows<T, index_t>);
  const auto* columns = static_cast<const index_t*>(neighbors);
  auto* results = static_cast<T*>(out);
  const int64_t n_units = rows.starts[rows.n_rows] + rows.n_rows;  // a row costs about as much as an entry
  std::atomic<int64_t> invalid{-1};
  at::parallel_for(0, n_units, std::max<int64_t>(1, kGrain / std::max<int64_t>(1, args.width)),
                   [&](int64_t first_unit, int64_t end_unit) {
                     std::vector<SumOf<T>> sums(args.width);
                     const int64_t begin = first_row_from(rows, first_unit);
                     const int64_t end = first_row_from(rows, end_unit);
                     const int64_t entry = multiply_range(args, columns, begin, end, sums.data(), results);
                     if (entry >= 0) invalid = entry;
                   });
  const int64_t entry = invalid;
  TORCH_CHECK_VALUE(entry < 0, "neighbors[", entry, "]=", columns[entry], ": the graph has nodes 0 to ",
                    args.n_nodes - 1);
}

// The index arrays of a submatrix that the kernel needs; empty where all rows or all columns are used.
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
  if (args.column_exponent != 0) feature_scale = scales_from_degrees<Sum>(args, args.column_exponent, 1);
  if (args.column_exponent != 0 && args.n_columns >= 0) {
    // In place: columns increase, so that columns[i] >= i, and no scale is overwritten before it is read.
    for (int64_t i = 0; i < args.n_columns; ++i) feature_scale[i] = feature_scale[args.columns[i]];
  }
  const int64_t n_features = args.n_columns < 0 ? args.n_nodes : args.n_columns;
  const KernelArguments<T> kernel_args{static_cast<const T*>(args.features),
                                       args.n_nodes,
                                       args.width,
                                       args.offsets,
                                       args.rows,
                                       index.feature_rows.empty() ? nullptr : index.feature_rows.data(),
                                       row_scale.data(),
                                       feature_scale.empty() ? nullptr : feature_scale.data(),
                                       static_cast<const T*>(args.addend),
                                       args.adds_identity,
                                       args.transposed,
                                       n_features * args.width * static_cast<int64_t>(sizeof(T)) > kPrefetchFromBytes,
                                       args.drop_threshold,
                                       args.step,
                                       args.seed};
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
