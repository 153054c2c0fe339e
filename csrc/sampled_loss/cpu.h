// Loss over in-batch and sampled negatives on the CPU, on raw pointers: what the operator of
// sampled_loss/sampled_loss.cpp and the fused training step run.
#pragma once

#include "matrix/product.h"
#include "sampled_loss/sampled_loss.h"

namespace grf {

// What is added to the scores of a row's columns (-inf: no row sees it), and how often each column counts; both [size],
// whole vectors.
template <typename T>
struct ScoreColumns {
  const T *offsets, *counts;
  int64_t size;
};

// M rows against N negatives. In-batch, a row's columns are those of `rows`, its own one among them. Otherwise they are
// the N negatives and, behind them, the row's own target, whose score and gradient are no part of the products.
template <typename T>
struct SampledLoss {
  int64_t m, n, width;  // M, N, H
  bool in_batch;
  const T *hidden, *rows;  // [M, H], [M + N, H]
  const T *bias, *log_q;   // [M + N], or null
  const T* count;          // [N], how often each negative occurs; null: once
  const bool* live;        // [M], or null
  const int64_t* ids;      // [M + N], or null
  LossOptions<T> options;
  Precision precision = Precision::full;  // of the products

  // The columns that the products make: their number, and the row of `rows` they begin with.
  int64_t columns() const { return in_batch ? m + n : n; }
  int64_t first_row() const { return in_batch ? 0 : m; }
  // Numbers from row to row of scores.
  int64_t score_stride() const;

  // `room` has room for 2 * score_stride() numbers, where the columns stay.
  ScoreColumns<T> prepare_columns(T* room) const;

  // Rows begin .. begin + n_rows - 1: the gradients of their scores into grad_scores [n_rows, score_stride()], their
  // losses (unscaled) into losses [n_rows].
  void score_rows(int64_t begin, int64_t n_rows, const ScoreColumns<T>& columns, T* grad_scores, T* losses) const;

  // grad_hidden [n_rows, H] of those rows, as far as it comes from the products.
  void hidden_gradient(int64_t n_rows, const T* grad_scores, T* grad_hidden) const;

 private:
  bool is_live(int64_t i) const { return live == nullptr || live[i]; }
  T offset(int64_t j) const;  // what is added to the score of row j of `rows`
  // Scores of row i, whose products are in `scores`, into their gradient; returns its loss.
  T score_row(int64_t i, const ScoreColumns<T>& columns, T* scores, T* work) const;
};

// Where the gradients of a whole problem go: [M, H], [M + N, H] and [M + N].
template <typename T>
struct LossGradients {
  T *hidden, *rows, *bias;
};

// The loss of all rows times `scale`, and its gradients.
template <typename T>
T loss_and_gradients(const SampledLoss<T>& problem, double scale, const LossGradients<T>& to);

}  // namespace grf
