// Options of the sampled loss, and the functions that launch its CUDA kernels. Specification:
// gru4rec_fast/ops/sampled_loss.py and sampled_loss_gradients.py, which use the same names.
//
// The M rows of `hidden` are scored against columns. Column j's item embedding is row j of `rows` [M + N, H]: first the
// targets of the M rows, then the N negatives.
#pragma once

#include <cstdint>
#include <string_view>

#include "common/bfloat16.h"
#include "common/stream.h"

namespace grf {

enum class RankingLoss { cross_entropy, bpr_max, top1, top1_max, bpr };

// Converts a loss's name as in the Python interface; ValueError for an unknown one.
RankingLoss loss_named(std::string_view name);

template <typename T>
struct LossOptions {
  RankingLoss loss;
  T elu, bpreg, smoothing, scale;  // elu: 0 for none; scale: factor of loss and gradients, 1 / batch_size

  template <typename U>
  LossOptions<U> as() const {
    return {loss, static_cast<U>(elu), static_cast<U>(bpreg), static_cast<U>(smoothing), static_cast<U>(scale)};
  }
};

namespace cuda {

// kScoreBytes, kMinScoreRows: the size of the part of the score matrix that exists at a time, at least so many rows.
// kSharedRowBytes: the longest row that a block keeps in shared memory. kLossThreads: the threads of a block.
#ifdef GRF_EMULATED
constexpr int64_t kScoreBytes = int64_t{96} << 10;  // all small, so that small tests have several chunks and long rows
constexpr int64_t kMinScoreRows = 16;
constexpr int64_t kSharedRowBytes = 1 << 10;
constexpr int kLossThreads = 64;
#else
constexpr int64_t kScoreBytes = int64_t{32} << 20;  // stays in L2 between matrix products and the row kernel
constexpr int64_t kMinScoreRows = 128;              // with fewer rows, a matrix product would not fill a GPU
constexpr int64_t kSharedRowBytes = 44 << 10;       // with the warps' sums less than 48 KB: four blocks fit on an SM
constexpr int kLossThreads = 256;
#endif

// Computes what is added to each column's scores: bias - log_q, or -inf for a column that no row may use.
template <typename T>
struct ScoreOffsets {
  int64_t m, n;           // M, N
  bool in_batch;          // true: the column of a dead row's target gets -inf
  const T *bias, *log_q;  // [M + N], or null
  const bool* live;       // [M], or null
  T* offsets;             // [M + N], written
};

// A chunk of rows of the score matrix. The kernel replaces scores by their gradients.
//
// In-batch, the columns are all M + N rows of `rows`, and include each row's own target. Otherwise the columns are the
// N negatives; the kernel then also computes the score of each row's own target and all gradients through it, which the
// matrix products leave out.
//
// Operand is the type that matrix products multiply: that of `hidden`, `rows` and the gradients of scores. Everything
// else has the type T of their sums. Gradients are computed in T and rounded to Operand once.
template <typename Operand>
struct ScoreRows {
  using T = typename Stored<Operand>::Sum;
  LossOptions<T> options;
  int64_t m, n, width;  // M, N, H
  bool in_batch;
  int64_t first, n_rows;                   // the chunk's rows of `hidden`
  const Operand *hidden, *rows;            // [M, H], [M + N, H]
  const T* offsets;                        // [M + N], added to scores, or null
  const T* count;                          // [N], how often each negative occurs; null: once
  const bool* live;                        // [M], or null: all rows are live
  const int64_t* ids;                      // [M + N], items whose accidental hits are masked, or null
  int64_t stride;                          // elements from row to row of scores and grads
  T* scores;                               // [n_rows, stride]: the matrix product; overwritten
  Operand* grads;                          // [n_rows, stride], written; may be the same memory as `scores`
  T* losses;                               // [M], written, times options.scale
  T *grad_hidden, *grad_rows, *grad_bias;  // not in-batch: the gradients through the own target, written

  // The number of columns, and the row of `rows` that is the first column.
  constexpr int64_t columns() const { return in_batch ? m + n : n; }
  constexpr int64_t first_column() const { return in_batch ? 0 : m; }
};

template <typename T>
void make_score_offsets(const ScoreOffsets<T>& columns, cudaStream_t stream);
template <typename Operand>
void make_losses(const ScoreRows<Operand>& rows, cudaStream_t stream);

}  // namespace cuda
}  // namespace grf
