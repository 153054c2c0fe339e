// The loss over in-batch and sampled negatives on the CPU, on raw pointers, for the operator of
// sampled_loss/sampled_loss.cpp and the fused training step.
#pragma once

#include "matrix/product.h"
#include "sampled_loss/sampled_loss.h"

namespace grf {

// What is added to the scores of each column (-inf for a column that no row may use), and how often each column counts.
// Both have `size` elements, a multiple of every vector length.
template <typename T>
struct ScoreColumns {
  const T *offsets, *counts;
  int64_t size;
};

// M rows scored against their targets and N negatives. In-batch, the columns are all M + N rows of `rows`, and include
// each row's own target. Otherwise the columns are the N negatives, and column N is the row's own target; its score and
// gradients are not part of the matrix products.
template <typename T>
struct SampledLoss {
  int64_t m, n, width;  // M, N, H
  bool in_batch;
  const T *hidden, *rows;  // [M, H], [M + N, H]
  const T *bias, *log_q;   // [M + N], or null
  const T* count;          // [N], how often each negative occurs; null: once
  const bool* live;        // [M], or null: all rows are live
  const int64_t* ids;      // [M + N], items whose accidental hits are masked, or null
  LossOptions<T> options;
  Precision precision = Precision::full;  // of the products

  // The number of columns of the matrix product, and the row of `rows` that is the first of them.
  int64_t columns() const { return in_batch ? m + n : n; }
  int64_t first_row() const { return in_batch ? 0 : m; }
  // Elements from row to row of scores.
  int64_t score_stride() const;

  // Computes the columns' offsets and counts in `memory`, 2 * score_stride() elements.
  ScoreColumns<T> prepare_columns(T* memory) const;

  // For rows [begin, begin + n_rows), computes the gradients of the scores, grad_scores [n_rows, score_stride()], and
  // the losses [n_rows] without options.scale.
  void score_rows(int64_t begin, int64_t n_rows, const ScoreColumns<T>& columns, T* grad_scores, T* losses) const;

  // Computes grad_hidden [n_rows, H] from the gradients of n_rows rows of scores, without the part through an own
  // target outside the matrix products.
  void hidden_gradient(int64_t n_rows, const T* grad_scores, T* grad_hidden) const;

 private:
  bool is_live(int64_t i) const { return live == nullptr || live[i]; }
  T offset(int64_t j) const;  // bias - log_q of row j of `rows`
  // Replaces row i of the matrix product, `scores`, by the gradient of the scores. Returns the row's loss.
  T score_row(int64_t i, const ScoreColumns<T>& columns, T* scores, T* work) const;
};

// The gradients of all rows, written: [M, H], [M + N, H] and [M + N].
template <typename T>
struct LossGradients {
  T *hidden, *rows, *bias;
};

// Returns the sum of all rows' losses times `scale`, and computes its gradients.
template <typename T>
T loss_and_gradients(const SampledLoss<T>& problem, double scale, const LossGradients<T>& grads);

}  // namespace grf
