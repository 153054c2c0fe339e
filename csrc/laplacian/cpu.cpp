// L @ E on the CPU from CSR indices and degrees alone. Specification: gru4rec_fast/reference/laplacian.py.
//
// Threads share out the entries, not the rows, so that the degrees of a power law balance; a row is never divided, so
// that the order of its sum, and with it every bit of the result, is that of one thread.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <optional>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "common/checks.h"
#include "common/philox.h"
#include "common/simd.h"
#include "laplacian/cpu.h"

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

#define GRF_KERNEL "laplacian/cpu_kernel.inc"
#include "common/foreach_isa.h"

namespace grf {
namespace {

using at::Tensor;

constexpr int64_t kGrain = 1 << 16;  // multiply-adds that are worth a thread
constexpr int64_t kFar = int64_t{1} << 25;

// One side of the matrix: degree to the power `exponent`, 0 for nodes without neighbours; D + I with `diagonal`.
template <typename Sum>
std::vector<Sum> power_of_degrees(const Tensor& offsets, double exponent, bool diagonal, double factor) {
  const int64_t* offset = offsets.const_data_ptr<int64_t>();
  std::vector<Sum> scale(offsets.size(0) - 1);
  at::parallel_for(0, static_cast<int64_t>(scale.size()), kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t node = begin; node < end; ++node) {
      const auto degree = static_cast<double>(offset[node + 1] - offset[node] + (diagonal ? 1 : 0));
      const double power = exponent == 0 ? 1 : exponent == -1 ? 1 / degree : 1 / std::sqrt(degree);
      scale[node] = static_cast<Sum>(degree == 0 && exponent != 0 ? 0 : factor * power);
    }
  });
  return scale;
}

// The first row whose entries, counted together with the rows before it, begin at `position` or later.
int64_t row_from(const int64_t* starts, int64_t n_rows, int64_t position) {
  int64_t low = 0, high = n_rows;
  while (low < high) {
    const int64_t middle = low + (high - low) / 2;
    if (starts[middle] + middle < position) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

// How the work is shared out: row i of the result begins at starts[i], which counts entries.
struct Work {
  const int64_t* starts;  // [n_rows + 1]
  int64_t n_rows;
};

template <typename T, typename index_t>
void multiply(const Product<T>& product, const Work& work, const Tensor& neighbours, Tensor& out) {
  const auto rows = GRF_DISPATCH(multiply_rows<T, index_t>);
  const auto* columns = neighbours.const_data_ptr<index_t>();
  auto* to = static_cast<T*>(out.mutable_data_ptr());
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
  TORCH_CHECK_VALUE(wrong < 0, "neighbours[", wrong, "]=", columns[wrong], ": the graph has nodes 0 to ",
                    product.n_nodes - 1);
}

// Which part of the matrix is multiplied by, as the kernel reads it.
struct Part {
  const int64_t* rows = nullptr;
  std::vector<int64_t> starts;
  std::vector<int32_t> positions;
  Work work;

  Part(const Tensor& offsets, const std::optional<Tensor>& chosen_rows, const std::optional<Tensor>& columns) {
    const int64_t n_nodes = offsets.size(0) - 1;
    const int64_t* offset = offsets.const_data_ptr<int64_t>();
    work = {offset, n_nodes};
    if (chosen_rows.has_value()) {
      rows = chosen_rows->const_data_ptr<int64_t>();
      starts.resize(chosen_rows->size(0) + 1);
      for (int64_t i = 0; i < chosen_rows->size(0); ++i) {
        starts[i + 1] = starts[i] + offset[rows[i] + 1] - offset[rows[i]];
      }
      work = {starts.data(), chosen_rows->size(0)};
    }
    if (columns.has_value()) {
      const int64_t* column = columns->const_data_ptr<int64_t>();
      positions.assign(n_nodes, -1);
      for (int64_t i = 0; i < columns->size(0); ++i) positions[column[i]] = static_cast<int32_t>(i);
    }
  }
};

template <typename T>
void multiply(const Tensor& features, const Tensor& offsets, const Tensor& neighbours, const Part& part,
              const std::optional<Tensor>& columns, const Propagation& how, const Tensor& added, Tensor& out) {
  using Sum = SumOf<T>;
  const std::string_view matrix = how.matrix;
  const bool diagonal = matrix == "norm";
  double exponents[2] = {matrix == "plain"       ? 0.0
                         : matrix == "symmetric" ? -0.5
                                                 : -1.0,
                         matrix == "symmetric" ? -0.5 : 0.0};
  if (how.transposed) std::swap(exponents[0], exponents[1]);
  const auto left = power_of_degrees<Sum>(offsets, exponents[0], diagonal, 1 / (1 - how.dropout));
  std::vector<Sum> scales;
  if (exponents[1] != 0) scales = power_of_degrees<Sum>(offsets, exponents[1], diagonal, 1);
  if (exponents[1] != 0 && columns.has_value()) {
    const int64_t* column = columns->const_data_ptr<int64_t>();
    for (int64_t i = 0; i < columns->size(0); ++i) scales[i] = scales[column[i]];  // rising: none is overwritten early
  }
  const Product<T> product{static_cast<const T*>(features.const_data_ptr()),
                           offsets.size(0) - 1,
                           features.size(1),
                           offsets.const_data_ptr<int64_t>(),
                           part.rows,
                           part.positions.empty() ? nullptr : part.positions.data(),
                           left.data(),
                           scales.empty() ? nullptr : scales.data(),
                           added.defined() ? static_cast<const T*>(added.const_data_ptr()) : nullptr,
                           diagonal,
                           how.transposed,
                           features.nbytes() > kFar,
                           static_cast<uint32_t>(std::floor(how.dropout * 4294967296.0)),
                           how.step,
                           how.seed};
  if (neighbours.scalar_type() == at::kInt) {
    multiply<T, int32_t>(product, part.work, neighbours, out);
  } else {
    multiply<T, int64_t>(product, part.work, neighbours, out);
  }
}

// Nodes that rise strictly: each at most once, all there.
void check_nodes(const char* name, const std::optional<Tensor>& nodes, int64_t n_nodes) {
  if (!nodes.has_value()) return;
  TORCH_CHECK_VALUE(nodes->dim() == 1 && nodes->scalar_type() == at::kLong && nodes->size(0) < int64_t{1} << 31, name,
                    " must be int64, one-dimensional, of fewer than 2**31 nodes");
  const int64_t* node = nodes->const_data_ptr<int64_t>();
  const int64_t n = nodes->size(0);
  TORCH_CHECK_VALUE(n == 0 || (node[0] >= 0 && node[n - 1] < n_nodes &&
                               std::is_sorted(
                                   node, node + n, [](int64_t a, int64_t b) { return a <= b; })),
                    name, " must be nodes in 0 to ", n_nodes - 1, ", each rising above the one before");
}

void check(const Tensor& features, const Tensor& offsets, const Tensor& neighbours,
           const std::optional<Tensor>& columns, std::string_view matrix, double p) {
  TORCH_CHECK_VALUE(matrix == "symmetric" || matrix == "mean" || matrix == "norm" || matrix == "plain", "matrix='",
                    matrix, "': choose one of symmetric, mean, norm, plain");
  TORCH_CHECK_VALUE(p >= 0 && p < 1, "dropout=", p, ": the probability of dropping must be in [0, 1)");
  TORCH_CHECK_VALUE(features.dim() == 2 && features.size(0) < int64_t{1} << 32,
                    "features must be [n_nodes, d] of fewer than 2**32 nodes, not ", features.sizes());
  TORCH_CHECK_VALUE(offsets.dim() == 1 && offsets.size(0) >= 1 && offsets.scalar_type() == at::kLong &&
                        (columns.has_value() || offsets.size(0) == features.size(0) + 1),
                    "offsets must be int64 [n_nodes + 1]");
  TORCH_CHECK_VALUE(!columns.has_value() || columns->size(0) == features.size(0), "features has ", features.size(0),
                    " rows, but there are ", columns.has_value() ? columns->size(0) : 0, " columns");
  TORCH_CHECK_VALUE(
      neighbours.dim() == 1 && (neighbours.scalar_type() == at::kInt || neighbours.scalar_type() == at::kLong),
      "neighbours must be int32 or int64 [n_entries]");
  const int64_t* offset = offsets.const_data_ptr<int64_t>();
  TORCH_CHECK_VALUE(offset[0] == 0 && offset[offsets.size(0) - 1] == neighbours.size(0) &&
                        std::is_sorted(offset, offset + offsets.size(0)),
                    "offsets must rise from 0 to ", neighbours.size(0), ", the number of neighbours, and never fall");
}

std::optional<Tensor> contiguous(const std::optional<Tensor>& tensor) {
  return tensor.has_value() ? std::optional<Tensor>(tensor->contiguous()) : std::nullopt;
}

Tensor laplacian(const Tensor& features, const Tensor& offsets, const Tensor& neighbours,
                 const std::optional<Tensor>& rows, const std::optional<Tensor>& columns, c10::string_view matrix,
                 double p, int64_t seed, int64_t step, bool transposed) {
  check_counters(seed, step, 1);
  const Propagation how{std::string_view(matrix.data(), matrix.size()), p, static_cast<uint64_t>(seed),
                        static_cast<uint32_t>(step), transposed};
  return propagate(features, {offsets, neighbours, rows, columns}, how);
}

}  // namespace

Tensor propagate(const Tensor& features, const GraphPart& graph, const Propagation& how, const Tensor& added) {
  const Tensor e = features.contiguous(), o = graph.offsets.contiguous(), n = graph.neighbours.contiguous();
  const std::optional<Tensor> r = contiguous(graph.rows), c = contiguous(graph.columns);
  check_nodes("rows", r, o.size(0) - 1);
  check_nodes("columns", c, o.size(0) - 1);
  check(e, o, n, c, how.matrix, how.dropout);
  const Part part(o, r, c);
  Tensor out = at::empty({part.work.n_rows, e.size(1)}, e.options());
  switch (e.scalar_type()) {
    case at::kFloat:
      multiply<float>(e, o, n, part, c, how, added, out);
      break;
    case at::kDouble:
      multiply<double>(e, o, n, part, c, how, added, out);
      break;
    default:
      TORCH_CHECK_VALUE(e.scalar_type() == at::kBFloat16, "features must be float32, float64 or bfloat16, not ",
                        e.scalar_type());
      multiply<uint16_t>(e, o, n, part, c, how, added, out);
  }
  return out;
}

namespace {

TORCH_LIBRARY_IMPL(gru4rec_fast, CPU, m) {
  m.impl("laplacian", &laplacian);
}

}  // namespace
}  // namespace grf
