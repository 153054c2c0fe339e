// The loss over in-batch and sampled negatives on the CPU, on raw pointers, for the operator of
// sampled_loss/sampled_loss.cpp and the fused training step.
#pragma once

#include "matrix/product.h"
#include "sampled_loss/sampled_loss.h"

namespace grf {

// `offsets` [size] is added to the scores of each column: -inf for a column that no row may use. `counts` [size] is how
// often each column counts. `size` is the number of columns, rounded up to a multiple of every vector length.
template <typename T>
struct ScoreColumns {
  const T *offsets, *counts;
  int64_t size;
};

// M hidden states, scored against their targets and N negatives. The score matrix has a row for each hidden state; only
// the member `rows` holds other rows, the item embeddings. With in_batch, the columns are all M + N items and include
// each row's own target. Without in_batch, the columns are the N negatives, followed by a column for the row's own
// target; the matrix products do not compute this column. sampled_loss/sampled_loss.h explains live.
template <typename T>
struct SampledLoss {
  int64_t m, n, width;  // M, N, H
  bool in_batch;
  const T *hidden, *rows;  // [M, H], [M + N, H]: hidden states, item embeddings
  const T *bias, *log_q;   // [M + N], or null
  const T* count;          // [N], how often each negative occurs; null: once
  const bool* live;        // [M], or null: all rows are live
  const int64_t* ids;      // [M + N], item indices, to mask accidental hits; null: no mask
  LossOptions<T> options;
  Precision precision = Precision::full;  // of the matrix products

  // Returns the number of columns of the matrix products.
  int64_t columns() const { return in_batch ? m + n : n; }
  // Returns the index in `rows` of the first column's item.
  int64_t first_item() const { return in_batch ? 0 : m; }
  // Returns the number of elements from row to row of scores: the columns with padding.
  int64_t score_stride() const;

  // Computes the columns' offsets and counts in `memory`, 2 * score_stride() elements.
  ScoreColumns<T> prepare_columns(T* memory) const;

  // For rows [begin, begin + n_rows), computes grad_scores [n_rows, score_stride()], the gradients of the scores, and
  // the losses [n_rows] without the factor options.scale.
  void differentiate_rows(int64_t begin, int64_t n_rows, const ScoreColumns<T>& columns, T* grad_scores,
                          T* losses) const;

  // Computes grad_hidden [n_rows, H] from the gradients of n_rows rows of scores. Without in_batch, grad_hidden
  // lacks the gradient through the score of the row's own target.
  void hidden_gradient(int64_t n_rows, const T* grad_scores, T* grad_hidden) const;

 private:
  bool is_live(int64_t i) const { return live == nullptr || live[i]; }
  T offset(int64_t j) const;  // bias - log_q of item j of `rows`
  // Replaces row i of the matrix product, `scores`, by the gradient of the scores. Returns the row's loss. `work` is
  // memory for 2 * score_stride() elements.
  T differentiate_row(int64_t i, const ScoreColumns<T>& columns, T* scores, T* work) const;
};

// Memory for the gradients of `hidden` [M, H], `rows` [M + N, H] and `bias` [M + N].
template <typename T>
struct LossGradients {
  T *hidden, *rows, *bias;
};

// Returns the sum of all rows' losses times `scale`, and computes its gradients. `scale` is problem.options.scale in
// double precision, so that the sum is rounded only once.
template <typename T>
T loss_and_gradients(const SampledLoss<T>& problem, double scale, const LossGradients<T>& grads);

}  // namespace grf
