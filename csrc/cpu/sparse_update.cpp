// Adagrad with momentum on the touched rows of a table, on the CPU. Specification:
// gru4rec_fast/reference/sparse_update.py.
//
// The positions in `index` are sorted by row, stably, so that a row's gradients stand together in the order in which
// they came and are summed in that order; then one pass over each touched row (cpu/sparse_update_kernel.inc). Threads
// share out the rows, and the columns of wide ones, so the result does not depend on their number.
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <optional>
#include <utility>
#include <vector>

#include "cpu/scratch.h"
#include "cpu/tensors.h"

namespace grf {
namespace {

// Columns of one row: where the parameter and its state lie, and the gradients that are summed, in the order of
// `position`, before they are used.
template <typename T>
struct TouchedRow {
  T *weight, *accumulator, *velocity;  // velocity may be null
  const T* grad;                       // of position 0; position p is p * stride behind
  int64_t stride, n_positions;
  const int64_t* position;
};

}  // namespace
}  // namespace grf

#define GRF_KERNEL "cpu/sparse_update_kernel.inc"
#include "common/foreach_isa.h"

namespace grf {
namespace {

using at::Tensor;

struct SortScratch;

void check_index(const int64_t* index, int64_t n, int64_t n_rows) {
  for (int64_t i = 0; i < n; ++i) {
    TORCH_CHECK_VALUE(0 <= index[i] && index[i] < n_rows, "index out of range: index[", i, "] = ", index[i],
                      ", the table has ", n_rows, " rows");
  }
}

// Puts into order [n] the positions in `index` sorted by row, equal rows by position: a counting sort by 11 bits of the
// row at a time, lowest first. `other` has room for n numbers too; the sorted one is returned.
int64_t* sort_positions(const int64_t* index, int64_t n, int64_t n_rows, int64_t* order, int64_t* other) {
  constexpr int kBits = 11;
  std::iota(order, order + n, int64_t{0});
  if (std::is_sorted(index, index + n)) return order;
  for (int shift = 0; shift < 63 && (n_rows - 1) >> shift > 0; shift += kBits) {
    const auto digit = [&](int64_t position) { return (index[position] >> shift) & ((1 << kBits) - 1); };
    int64_t start[(1 << kBits) + 1] = {};
    for (int64_t i = 0; i < n; ++i) ++start[digit(i) + 1];
    std::partial_sum(start, start + (1 << kBits), start);
    for (int64_t i = 0; i < n; ++i) other[start[digit(order[i])]++] = order[i];
    std::swap(order, other);
  }
  return order;
}

template <typename T>
void update_rows(T* table, T* accumulator, T* velocity, int64_t n_rows, int64_t width, const int64_t* index,
                 int64_t n_index, const T* grad, T lr, T momentum, T eps) {
  Scratch<int64_t, SortScratch> scratch(3 * n_index + 1);
  int64_t *first = scratch.take(n_index), *second = scratch.take(n_index), *start = scratch.take(n_index + 1);
  const int64_t* order = sort_positions(index, n_index, n_rows, first, second);
  int64_t n_touched = 0;  // start[u] is where the u-th touched row begins in `order`
  for (int64_t i = 0; i < n_index; ++i) {
    if (i == 0 || index[order[i]] != index[order[i - 1]]) start[n_touched++] = i;
  }
  start[n_touched] = n_index;

  constexpr int64_t kColumns = 4096;  // of a row, at most, in one piece of work
  const int64_t pieces_per_row = (width + kColumns - 1) / kColumns;
  const int64_t n_pieces = n_touched * pieces_per_row;
  const auto piece = [&](int64_t number) {
    const int64_t touched = number / pieces_per_row, column = number % pieces_per_row * kColumns;
    const int64_t at = index[order[start[touched]]] * width + column;
    return TouchedRow<T>{table + at,
                         accumulator + at,
                         velocity == nullptr ? nullptr : velocity + at,
                         grad + column,
                         width,
                         start[touched + 1] - start[touched],
                         order + start[touched]};
  };
  const auto update = GRF_DISPATCH(adagrad_row<T>);
  const int64_t grain = std::max<int64_t>(1, 8192 / std::max<int64_t>(std::min(width, kColumns), 1));
  at::parallel_for(0, n_pieces, grain, [&](int64_t begin, int64_t end) {
    TouchedRow<T> row = piece(begin);
    for (int64_t number = begin; number < end; ++number) {
      const TouchedRow<T> next = piece(std::min(number + 1, end - 1));
      update(row, next, std::min(kColumns, width - number % pieces_per_row * kColumns), lr, momentum, eps);
      row = next;
    }
  });
}

void sparse_adagrad(const Tensor& table, const Tensor& accumulator, const std::optional<Tensor>& velocity,
                    const Tensor& index, const Tensor& grad, double lr, double momentum, double eps) {
  TORCH_CHECK_VALUE(table.dim() >= 1, "table must be [R, ...], not a scalar");
  TORCH_CHECK_VALUE(velocity.has_value() || momentum == 0, "momentum=", momentum, " needs a velocity tensor");
  const auto dtype = table.scalar_type();
  check_kernel_dtype("sparse_adagrad", dtype);
  const int64_t n_rows = table.size(0), n_index = index.numel();
  auto grad_shape = table.sizes().vec();
  grad_shape[0] = n_index;
  const Tensor i = contiguous(index, "index", {n_index}, at::kLong), g = contiguous(grad, "grad", grad_shape, dtype);
  const Tensor w = contiguous(table, "table", table.sizes(), dtype);
  const Tensor a = contiguous(accumulator, "accumulator", table.sizes(), dtype);
  const Tensor v = contiguous(velocity, "velocity", table.sizes(), dtype);
  check_index(i.const_data_ptr<int64_t>(), n_index, n_rows);
  if (g.numel() == 0) return;
  AT_DISPATCH_FLOATING_TYPES(dtype, "sparse_adagrad", [&] {
    update_rows<scalar_t>(w.mutable_data_ptr<scalar_t>(), a.mutable_data_ptr<scalar_t>(),
                          v.defined() ? v.mutable_data_ptr<scalar_t>() : nullptr, n_rows, w.numel() / n_rows,
                          i.const_data_ptr<int64_t>(), n_index, g.const_data_ptr<scalar_t>(), static_cast<scalar_t>(lr),
                          static_cast<scalar_t>(momentum), static_cast<scalar_t>(eps));
  });
  // A table that is not contiguous was updated in a copy.
  if (!w.is_same(table)) table.copy_(w);
  if (!a.is_same(accumulator)) accumulator.copy_(a);
  if (v.defined() && !v.is_same(*velocity)) velocity->copy_(v);
}

TORCH_LIBRARY_IMPL(gru4rec_fast, CPU, m) {
  m.impl("sparse_adagrad", &sparse_adagrad);
}

}  // namespace
}  // namespace grf
