// L @ E on the CPU from CSR indices and degrees alone. Specification: gru4rec_fast/ops/laplacian_propagation.py.
//
// Threads share out the entries, not the rows, so that the degrees of a power law balance; a row is never divided, so
// that the order of its sum, and with it every bit of the result, is that of one thread.
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

// What bfloat16 bits (as uint16_t) and other features are summed in.
template <typename T>
using SumOf = std::conditional_t<std::is_same_v<T, uint16_t>, float, T>;

// A product as raw pointers. Entry (row, column) of the matrix is left[row] * scales[where column's features stand]
// (scales null: left[row]), where a Philox word reaches the threshold (0: no dropout).
template <typename T>
struct Product {
  const T* features;  // [n_nodes, width], or of the chosen columns only
  int64_t n_nodes, width;
  const int64_t* offsets;    // [n_nodes + 1]
  const int64_t* rows;       // [n_rows] rows to compute, or null: all
  const int32_t* positions;  // [n_nodes] where a column's features stand, -1: left out; or null: all, in order
  const SumOf<T>* left;
  const SumOf<T>* scales;
  const T* added;  // like features: the row of a node is added to its result; or null
  bool diagonal;   // entries (row, row) beside those of the graph
  bool transposed;
  bool far;  // no cache holds the features: their rows are called for early
  uint32_t threshold, step;
  uint64_t seed;
};

}  // namespace
}  // namespace grf

#define GRF_KERNEL "laplacian_propagation/cpu_kernel.inc"
#include "common/foreach_isa.h"

namespace grf {
namespace {

constexpr int64_t kGrain = 1 << 16;  // multiply-adds that are worth a thread
constexpr int64_t kFar = int64_t{1} << 25;

// One side of the matrix: degree to the power `exponent`, 0 for nodes without neighbors; D + I with `diagonal`.
template <typename Sum>
std::vector<Sum> power_of_degrees(const LaplacianProduct& given, double exponent, double factor) {
  const int64_t* offset = given.offsets;
  std::vector<Sum> scale(given.n_nodes);
  at::parallel_for(0, static_cast<int64_t>(scale.size()), kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t node = begin; node < end; ++node) {
      const auto degree = static_cast<double>(offset[node + 1] - offset[node] + (given.diagonal ? 1 : 0));
      const double power = exponent == 0 ? 1 : exponent == -1 ? 1 / degree : 1 / std::sqrt(degree);
      scale[node] = static_cast<Sum>(degree == 0 && exponent != 0 ? 0 : factor * power);
    }
  });
  return scale;
}

// The first row whose entries, counted together with the rows before it, begin at `position` or later.
int64_t row_from(const int64_t* starts, int64_t n_rows, int64_t position) {
  return partition_point(n_rows, [&](int64_t row) { return starts[row] + row < position; });
}

// How the work is shared out: row i of the result begins at starts[i], which counts entries.
struct Work {
  const int64_t* starts;  // [n_rows + 1]
  int64_t n_rows;
};

template <typename T, typename index_t>
void multiply(const Product<T>& product, const Work& work, const void* neighbors, void* out) {
  const auto rows = GRF_DISPATCH(multiply_rows<T, index_t>);
  const auto* columns = static_cast<const index_t*>(neighbors);
  auto* to = static_cast<T*>(out);
  const int64_t total = work.starts[work.n_rows] + work.n_rows;  // a row costs about as much as an entry
  std::atomic<int64_t> bad{-1};
  at::parallel_for(0, total, std::max<int64_t>(1, kGrain / std::max<int64_t>(1, product.width)),
                   [&](int64_t begin, int64_t end) {
                     std::vector<SumOf<T>> sums(product.width);
                     const int64_t first = row_from(work.starts, work.n_rows, begin);
                     const int64_t last = row_from(work.starts, work.n_rows, end);
                     const int64_t wrong = rows(product, columns, first, last, sums.data(), to);
                     if (wrong >= 0) bad = wrong;
                   });
  const int64_t wrong = bad;
  TORCH_CHECK_VALUE(wrong < 0, "neighbors[", wrong, "]=", columns[wrong], ": the graph has nodes 0 to ",
                    product.n_nodes - 1);
}

// Which part of the matrix is multiplied by, as the kernel reads it.
struct Part {
  std::vector<int64_t> starts;
  std::vector<int32_t> positions;
  Work work;

  explicit Part(const LaplacianProduct& given) : work{given.offsets, given.n_rows} {
    const int64_t* offset = given.offsets;
    if (given.rows != nullptr) {
      starts.resize(given.n_rows + 1);
      for (int64_t i = 0; i < given.n_rows; ++i) {
        starts[i + 1] = starts[i] + offset[given.rows[i] + 1] - offset[given.rows[i]];
      }
      work = {starts.data(), given.n_rows};
    }
    if (given.n_columns >= 0) {
      positions.assign(given.n_nodes, -1);
      for (int64_t i = 0; i < given.n_columns; ++i) positions[given.columns[i]] = static_cast<int32_t>(i);
    }
  }
};

template <typename T>
void multiply(const LaplacianProduct& given) {
  using Sum = SumOf<T>;
  const Part part(given);
  const auto left = power_of_degrees<Sum>(given, given.left_exponent, given.factor);
  std::vector<Sum> scales;
  if (given.right_exponent != 0) scales = power_of_degrees<Sum>(given, given.right_exponent, 1);
  if (given.right_exponent != 0 && given.n_columns >= 0) {
    // rising: none is overwritten early
    for (int64_t i = 0; i < given.n_columns; ++i) scales[i] = scales[given.columns[i]];
  }
  const int64_t n_features = given.n_columns < 0 ? given.n_nodes : given.n_columns;
  const Product<T> product{static_cast<const T*>(given.features),
                           given.n_nodes,
                           given.width,
                           given.offsets,
                           given.rows,
                           part.positions.empty() ? nullptr : part.positions.data(),
                           left.data(),
                           scales.empty() ? nullptr : scales.data(),
                           static_cast<const T*>(given.added),
                           given.diagonal,
                           given.transposed,
                           n_features * given.width * static_cast<int64_t>(sizeof(T)) > kFar,
                           given.threshold,
                           given.step,
                           given.seed};
  if (given.neighbors_are_wide) {
    multiply<T, int64_t>(product, part.work, given.neighbors, given.out);
  } else {
    multiply<T, int32_t>(product, part.work, given.neighbors, given.out);
  }
}

}  // namespace

void multiply_laplacian(const LaplacianProduct& product) {
  switch (product.type) {
    case FeatureType::float32:
      return multiply<float>(product);
    case FeatureType::float64:
      return multiply<double>(product);
    case FeatureType::bfloat16:
      return multiply<uint16_t>(product);
  }
}

}  // namespace grf
