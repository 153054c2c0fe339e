// The loss over in-batch and sampled negatives with its gradients, on the CPU. Specification:
// gru4rec_fast/ops/sampled_loss.py and row_losses.py.
//
// The outer loop is over tiles of rows. For each tile, one matrix product computes the scores, the row kernel
// (sampled_loss/cpu_kernel.inc) replaces them by their gradients, and two products and a column sum compute the
// gradients of `hidden`, `rows` (the item embeddings) and `bias`. A tile has as many rows as fit into kTileBytes of
// scores, so that they stay in cache, but at least kMinRows. The bottleneck is the three matrix products. bfloat16
// operands are passed as floats and multiplied with Precision::bf16.
#include "sampled_loss/cpu.h"

#include <ATen/Parallel.h>
#include <c10/util/BFloat16.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "common/rows.h"
#include "common/scratch.h"
#include "matrix/product.h"

#define GRF_KERNEL "sampled_loss/cpu_kernel.inc"
#include "common/foreach_isa.h"

namespace grf {
namespace {

constexpr int64_t kTileBytes = int64_t{4} << 20;
constexpr int64_t kMinRows = 64;
constexpr int64_t kAlignment = 64;  // bytes; rows are padded to multiples of it: whole vectors of every instruction set

// Tags of the buffers that Scratch keeps for each thread.
struct TileScratch;
struct RowScratch;

}  // namespace

template <typename T>
int64_t SampledLoss<T>::score_stride() const {
  const int64_t multiple = kAlignment / static_cast<int64_t>(sizeof(T));
  const int64_t target_columns = in_batch ? 0 : 1;  // without in_batch, column n is the row's own target
  return std::max((columns() + target_columns + multiple - 1) / multiple, int64_t{1}) * multiple;
}

template <typename T>
ScoreColumns<T> SampledLoss<T>::prepare_columns(T* memory) const {
  const int64_t size = score_stride(), n_targets = in_batch ? m : 0;  // the targets are the first columns
  T *offsets = memory, *counts = memory + size;
  std::fill_n(offsets, size, -std::numeric_limits<T>::infinity());
  std::fill_n(counts, size, T{1});
  for (int64_t j = 0; j < columns(); ++j) {
    if (j >= n_targets || live == nullptr || live[j]) offsets[j] = offset(first_item() + j);
  }
  if (count != nullptr) std::copy_n(count, n, counts + n_targets);
  return {offsets, counts, size};
}

template <typename T>
T SampledLoss<T>::offset(int64_t j) const {
  return (bias == nullptr ? 0 : bias[j]) - (log_q == nullptr ? 0 : log_q[j]);
}

template <typename T>
T SampledLoss<T>::differentiate_row(int64_t i, const ScoreColumns<T>& columns, T* scores, T* work) const {
  if (!is_live(i)) {
    std::fill_n(scores, columns.size, T{0});  // the gradients
    return 0;
  }
  const int64_t target_column = in_batch ? i : n;
  // The target's score is passed separately, because with in_batch mask_hits masks the target's column, too.
  const T target_product =
      in_batch ? scores[target_column] : GRF_DISPATCH(dot<T>)(hidden + i * width, rows + i * width, width);
  if (ids != nullptr) GRF_DISPATCH(mask_hits<T>)(scores, ids + first_item(), this->columns(), ids[i]);
  return GRF_DISPATCH(loss_row<T>)(options, scores, columns, target_column, target_product + offset(i), work);
}

template <typename T>
void SampledLoss<T>::differentiate_rows(int64_t begin, int64_t n_rows, const ScoreColumns<T>& columns, T* grad_scores,
                                        T* losses) const {
  const int64_t size = columns.size;
  const Matrix<T> states{hidden + begin * width, width}, items{rows + first_item() * width, width};
  multiply(n_rows, this->columns(), width, states, items.transposed(), grad_scores, size, /*add=*/false, precision);
  // Grain size: about 8192 scores. Fewer are not worth another thread.
  at::parallel_for(0, n_rows, std::max<int64_t>(1, 8192 / size), [&](int64_t first, int64_t last) {
    Scratch<T, RowScratch> work(2 * size);
    T* memory = work.take(2 * size);
    for (int64_t i = first; i < last; ++i) {
      losses[i] = differentiate_row(begin + i, columns, grad_scores + i * size, memory);
    }
  });
}

template <typename T>
void SampledLoss<T>::hidden_gradient(int64_t n_rows, const T* grad_scores, T* grad_hidden) const {
  const Matrix<T> grad{grad_scores, score_stride()}, items{rows + first_item() * width, width};
  multiply(n_rows, width, columns(), grad, items, grad_hidden, width, /*add=*/false, precision);
}

template struct SampledLoss<float>;
template struct SampledLoss<double>;

namespace {

// Without in_batch: computes the gradients through the score of row i's own target. `grad` is that score's gradient.
template <typename T>
void add_target_gradients(const SampledLoss<T>& problem, int64_t i, T grad, const LossGradients<T>& grads) {
  const auto add = GRF_DISPATCH(add_scaled<T>);
  const int64_t width = problem.width, offset = i * width;
  add(grads.hidden + offset, problem.rows + offset, grad, width);
  std::fill_n(grads.rows + offset, width, T{0});
  add(grads.rows + offset, problem.hidden + offset, grad, width);
  grads.bias[i] = grad;
}

// Rounds the gradients of scores to bfloat16. All other gradients are computed from the rounded gradients.
void round_to_bf16(float* grads, int64_t n) {
  at::parallel_for(0, n, 1 << 15, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) grads[i] = static_cast<float>(c10::BFloat16(grads[i]));
  });
}

}  // namespace

template <typename T>
T loss_and_gradients(const SampledLoss<T>& problem, double scale, const LossGradients<T>& grads) {
  const int64_t m = problem.m, n = problem.n, width = problem.width;
  const int64_t columns = problem.columns(), first_item = problem.first_item(), size = problem.score_stride();
  const int64_t cached_rows = kTileBytes / (static_cast<int64_t>(sizeof(T)) * size);
  const int64_t tile = std::min(std::max(cached_rows, kMinRows), m);
  Scratch<T, TileScratch> scratch(2 * size + m + tile * size);
  const ScoreColumns<T> score_columns = problem.prepare_columns(scratch.take(2 * size));
  T *scores = scratch.take(tile * size), *losses = scratch.take(m);
  std::fill_n(grads.bias + first_item, columns, T{0});
  if (m == 0) std::fill_n(grads.rows, n * width, T{0});
  for (int64_t begin = 0; begin < m; begin += tile) {
    const int64_t n_rows = std::min(tile, m - begin);
    problem.differentiate_rows(begin, n_rows, score_columns, scores, losses + begin);
    if constexpr (std::is_same_v<T, float>) {
      if (problem.precision == Precision::bf16) round_to_bf16(scores, n_rows * size);
    }
    problem.hidden_gradient(n_rows, scores, grads.hidden + begin * width);
    const Matrix<T> grad_scores{scores, size}, states{problem.hidden + begin * width, width};
    multiply(columns, width, n_rows, grad_scores.transposed(), states, grads.rows + first_item * width, width,
             /*add=*/begin > 0, problem.precision);
    add_column_sums(scores, n_rows, columns, size, grads.bias + first_item);
    if (!problem.in_batch) {
      for (int64_t i = 0; i < n_rows; ++i) add_target_gradients(problem, begin + i, scores[i * size + n], grads);
    }
  }
  double sum = 0;  // in double, so that the rounding error does not grow with the number of rows
  for (int64_t i = 0; i < m; ++i) sum += losses[i];
  return static_cast<T>(sum * scale);
}

template float loss_and_gradients(const SampledLoss<float>&, double, const LossGradients<float>&);
template double loss_and_gradients(const SampledLoss<double>&, double, const LossGradients<double>&);

}  // namespace grf
