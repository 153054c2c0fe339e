// Loss over in-batch and sampled negatives with its gradients, on the CPU. Specification:
// gru4rec_fast/reference/sampled_loss.py and sampled_loss_gradients.py.
//
// A tile of rows at a time: one product gives its scores, one pass over each row turns them into the gradient in place
// (cpu/sampled_loss_kernel.inc), two products and a column sum carry that on. A tile is at most kTileBytes (or kMinRows
// rows), so that its scores stay in cache however many rows there are.
//
// In-batch, a row's columns are those of `rows`, its own one among them. Otherwise they are the N shared negatives and,
// behind them, the row's own target, whose score and gradient are no part of the products.
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <optional>
#include <string_view>
#include <tuple>
#include <type_traits>

#include "cpu/product.h"
#include "cpu/scratch.h"
#include "cpu/tensors.h"

namespace grf {
namespace {

enum class Loss { cross_entropy, bpr_max, top1, top1_max, bpr };

template <typename T>
struct LossParams {
  Loss loss;
  T elu, bpreg, smoothing, scale;  // scale: 1 / batch_size, on gradients
};

}  // namespace
}  // namespace grf

#define GRF_KERNEL "cpu/sampled_loss_kernel.inc"
#include "common/foreach_isa.h"

namespace grf {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

constexpr int64_t kTileBytes = int64_t{4} << 20;
constexpr int64_t kMinRows = 64;
constexpr int64_t kAlignment = 64;  // bytes from row to row of scores: whole vectors of every instruction set

Loss loss_named(std::string_view name) {
  if (name == "cross-entropy") return Loss::cross_entropy;
  if (name == "bpr-max") return Loss::bpr_max;
  if (name == "top1") return Loss::top1;
  if (name == "top1-max") return Loss::top1_max;
  TORCH_CHECK_VALUE(name == "bpr", "loss=", name, ": choose one of cross-entropy, bpr-max, top1, top1-max, bpr");
  return Loss::bpr;
}

struct TileScratch;
struct RowScratch;

// The problem as raw pointers; bias, live, log_q and ids may be null.
template <typename T>
struct SampledLoss {
  int64_t m, n, width;  // M, N, H
  bool in_batch;
  const T *hidden, *rows, *bias, *log_q;
  const bool* live;
  const int64_t* ids;
  LossParams<T> params;
  double scale;  // 1 / batch_size
  T *grad_hidden, *grad_rows, *grad_bias;

  // The columns that the products make: their number, and the row of `rows` they begin with.
  int64_t columns() const { return in_batch ? m + n : n; }
  int64_t first_row() const { return in_batch ? 0 : m; }
  int64_t own_column(int64_t i) const { return in_batch ? i : n; }
  bool is_live(int64_t i) const { return live == nullptr || live[i]; }

  // What is added to the score of row `j` of `rows`.
  T offset(int64_t j) const { return (bias == nullptr ? 0 : bias[j]) - (log_q == nullptr ? 0 : log_q[j]); }

  // The offsets of a row's columns, -inf where no row sees them.
  void fill_offsets(T* offsets, int64_t size) const {
    std::fill_n(offsets, size, -std::numeric_limits<T>::infinity());
    for (int64_t j = 0; j < columns(); ++j) {
      if (!in_batch || j >= m || is_live(j)) offsets[j] = offset(first_row() + j);
    }
  }

  T row(int64_t i, T* scores, const T* offsets, int64_t size, T* work) const {
    if (!is_live(i)) {
      std::fill_n(scores, size, T{0});
      return 0;
    }
    const int64_t own = own_column(i);
    const T product = in_batch ? scores[own] : GRF_DISPATCH(dot<T>)(hidden + i * width, rows + i * width, width);
    if (ids != nullptr) GRF_DISPATCH(hide_hits<T>)(scores, ids + first_row(), columns(), ids[i]);
    return GRF_DISPATCH(loss_row<T>)(params, scores, offsets, size, own, product + offset(i), work);
  }

  // The gradients that run through the own columns where these are no part of the products.
  void add_own(int64_t i, T grad) const {
    const auto add = GRF_DISPATCH(add_scaled<T>);
    add(grad_hidden + i * width, rows + i * width, grad, width);
    std::fill_n(grad_rows + i * width, width, T{0});
    add(grad_rows + i * width, hidden + i * width, grad, width);
    grad_bias[i] = grad;
  }

  T run() const {
    const int64_t columns = this->columns(), first_row = this->first_row();
    const int64_t multiple = kAlignment / static_cast<int64_t>(sizeof(T));
    const int64_t size = (columns + (in_batch ? 0 : 1) + multiple - 1) / multiple * multiple;
    const int64_t fitting = kTileBytes / (static_cast<int64_t>(sizeof(T)) * std::max(size, multiple));
    const int64_t tile = std::min(std::max(fitting, kMinRows), m);
    Scratch<T, TileScratch> scratch(size + m + tile * size);
    T *offsets = scratch.take(size), *scores = scratch.take(tile * size), *losses = scratch.take(m);
    fill_offsets(offsets, size);
    std::fill_n(grad_bias + first_row, columns, T{0});
    if (m == 0) std::fill_n(grad_rows, n * width, T{0});
    for (int64_t begin = 0; begin < m; begin += tile) {
      const int64_t count = std::min(tile, m - begin);
      const Matrix<T> h{hidden + begin * width, width}, r{rows + first_row * width, width};
      multiply(count, columns, width, h, r.transposed(), scores, size);
      at::parallel_for(0, count, std::max<int64_t>(1, 8192 / std::max(size, multiple)), [&](int64_t from, int64_t to) {
        Scratch<T, RowScratch> work(2 * size);
        T* room = work.take(2 * size);
        for (int64_t i = from; i < to; ++i) losses[begin + i] = row(begin + i, scores + i * size, offsets, size, room);
      });
      const Matrix<T> grad{scores, size};
      multiply(count, width, columns, grad, r, grad_hidden + begin * width, width);
      multiply(columns, width, count, grad.transposed(), h, grad_rows + first_row * width, width, begin > 0);
      at::parallel_for(0, columns, 512, [&](int64_t from, int64_t to) {
        for (int64_t i = 0; i < count; ++i) {
          GRF_DISPATCH(add_scaled<T>)(grad_bias + first_row + from, scores + i * size + from, T{1}, to - from);
        }
      });
      if (!in_batch) {
        for (int64_t i = 0; i < count; ++i) add_own(begin + i, scores[i * size + n]);
      }
    }
    double sum = 0;  // one rounding, however many rows
    for (int64_t i = 0; i < m; ++i) sum += losses[i];
    return static_cast<T>(sum * scale);
  }
};

std::tuple<Tensor, Tensor, Tensor, Tensor> sampled_loss(const Tensor& hidden, const Tensor& rows,
                                                        const OptionalTensor& bias, const OptionalTensor& live,
                                                        const OptionalTensor& log_q, const OptionalTensor& ids,
                                                        std::string_view loss, bool in_batch, double batch_size,
                                                        double elu_param, double bpreg, double label_smoothing) {
  TORCH_CHECK_VALUE(hidden.dim() == 2 && rows.dim() == 2 && rows.size(0) >= hidden.size(0),
                    "hidden must be [M, H] and rows [M + N, H], not ", hidden.sizes(), " and ", rows.sizes());
  TORCH_CHECK_VALUE(elu_param >= 0, "elu_param=", elu_param, ": must not be negative");
  const auto dtype = hidden.scalar_type();
  check_kernel_dtype("sampled_loss", dtype);
  const int64_t m = hidden.size(0), columns = rows.size(0), width = hidden.size(1);
  const Tensor h = hidden.contiguous(), r = contiguous(rows, "rows", {columns, width}, dtype);
  const Tensor b = contiguous(bias, "bias", {columns}, dtype), l = contiguous(live, "live", {m}, at::kBool);
  const Tensor q = contiguous(log_q, "log_q", {columns}, dtype), i = contiguous(ids, "ids", {columns}, at::kLong);
  Tensor value = at::empty({}, h.options()), grad_hidden = at::empty({m, width}, h.options());
  Tensor grad_rows = at::empty({columns, width}, h.options()), grad_bias = at::empty({columns}, h.options());
  AT_DISPATCH_FLOATING_TYPES(dtype, "sampled_loss", [&] {
    const LossParams<scalar_t> params{loss_named(loss), static_cast<scalar_t>(elu_param), static_cast<scalar_t>(bpreg),
                                      static_cast<scalar_t>(label_smoothing), static_cast<scalar_t>(1 / batch_size)};
    const SampledLoss<scalar_t> problem{m,
                                        columns - m,
                                        width,
                                        in_batch,
                                        h.const_data_ptr<scalar_t>(),
                                        r.const_data_ptr<scalar_t>(),
                                        data_or_null<scalar_t>(b),
                                        data_or_null<scalar_t>(q),
                                        data_or_null<bool>(l),
                                        data_or_null<int64_t>(i),
                                        params,
                                        1 / batch_size,
                                        grad_hidden.mutable_data_ptr<scalar_t>(),
                                        grad_rows.mutable_data_ptr<scalar_t>(),
                                        grad_bias.mutable_data_ptr<scalar_t>()};
    *value.mutable_data_ptr<scalar_t>() = problem.run();
  });
  return {value, grad_hidden, grad_rows, grad_bias};
}

TORCH_LIBRARY_IMPL(gru4rec_fast, CPU, m) {
  m.impl("sampled_loss", &sampled_loss);
}

}  // namespace
}  // namespace grf
