// Options of the sampled loss, and the functions that launch its CUDA kernels. Specification:
// gru4rec_fast/ops/sampled_loss.py and row_losses.py, which use the same names.
//
// The matrix of scores has M rows, one per hidden state, and up to M + N columns, one per item. `hidden` [M, H] are the
// hidden states. `rows` [M + N, H] are the item embeddings (rows of the output table): first of the M targets, one
// per row of scores, then of the N negatives. An accidental hit is a negative that equals a row's own target.
// A row of scores is dead if its lane (one of the sessions processed in parallel) has no session left; its loss and
// gradients are 0. All other rows are live.
#pragma once

#include <cstdint>
#include <string_view>

#include "common/bfloat16.h"
#include "common/stream.h"

namespace grf {

enum class RankingLoss { cross_entropy, bpr_max, top1, top1_max, bpr };

// Returns the loss that has this name in Python, such as "bpr-max". Raises ValueError for an unknown name.
RankingLoss loss_named(std::string_view name);

template <typename T>
struct LossOptions {
  RankingLoss loss;
  T elu, bpreg, smoothing;  // elu: 0 means no ELU
  T scale;                  // factor of loss and gradients: 1 / batch_size

  // Returns the options with numbers of type U.
  template <typename U>
  LossOptions<U> as() const {
    return {loss, static_cast<U>(elu), static_cast<U>(bpreg), static_cast<U>(smoothing), static_cast<U>(scale)};
  }
};

namespace cuda {

// kScoreBytes      the maximum size of a chunk of rows of the score matrix; only one chunk exists at a time
// kMinScoreRows    a chunk may have this many rows, even if it is then larger than kScoreBytes
// kSharedRowBytes  the longest row that a block keeps in shared memory
// kLossThreads     the number of threads of a block
#ifdef GRF_EMULATED
// All are small, so that small tests have several chunks and rows that do not fit into shared memory.
constexpr int64_t kScoreBytes = int64_t{96} << 10;
constexpr int64_t kMinScoreRows = 16;
constexpr int64_t kSharedRowBytes = 1 << 10;
constexpr int kLossThreads = 64;
#else
constexpr int64_t kScoreBytes = int64_t{32} << 20;  // a chunk stays in L2 between matrix products and the row kernel
constexpr int64_t kMinScoreRows = 128;              // with fewer rows, a matrix product would not fill a GPU
// The row and the sums of the block's warps need less than 48 KB of shared memory, so that four blocks fit on an SM.
constexpr int64_t kSharedRowBytes = 44 << 10;
constexpr int kLossThreads = 256;
#endif

// Arguments of the kernel that computes the number to add to the scores of each column: bias - log_q, or -inf for a
// column that no row may use.
template <typename T>
struct ScoreOffsets {
  int64_t m, n;           // M, N
  bool in_batch;          // true: the column of a dead row's target gets -inf
  const T *bias, *log_q;  // [M + N], or null
  const bool* live;       // [M], or null
  T* offsets;             // [M + N], written
};

// Arguments of the kernel that replaces scores by their gradients, in a chunk of rows of the score matrix.
//
// With in_batch, the columns are all M + N items and include each row's own target. Without in_batch, the columns are
// the N negatives. The kernel then also computes the score of each row's own target and all gradients through this
// score, because the matrix products do not include it.
//
// Operand is the type of `hidden`, `rows` and the gradients of scores, which the matrix products multiply. All other
// numbers have the type T, in which the matrix products sum. The gradients of scores are computed in T and rounded to
// Operand once.
template <typename Operand>
struct ScoreRows {
  using T = typename Stored<Operand>::Sum;
  LossOptions<T> options;
  int64_t m, n, width;  // M, N, H
  bool in_batch;
  int64_t first, n_rows;                   // the chunk's rows: [first, first + n_rows)
  const Operand *hidden, *rows;            // [M, H], [M + N, H]: hidden states, item embeddings
  const T* offsets;                        // [M + N], added to scores, or null
  const T* count;                          // [N], how often each negative occurs; null: once
  const bool* live;                        // [M], or null: all rows are live
  const int64_t* ids;                      // [M + N], item indices, to mask accidental hits; null: no mask
  int64_t stride;                          // elements from row to row of scores and grads
  T* scores;                               // [n_rows, stride]: the matrix product; overwritten
  Operand* grads;                          // [n_rows, stride], written; may be the same memory as `scores`
  T* losses;                               // [M], written; includes the factor options.scale
  T *grad_hidden, *grad_rows, *grad_bias;  // written without in_batch: the gradients through the own target's score

  // Returns the number of columns.
  constexpr int64_t columns() const { return in_batch ? m + n : n; }
  // Returns the index in `rows` of the first column's item.
  constexpr int64_t first_item() const { return in_batch ? 0 : m; }
};

// Launch the kernels.
template <typename T>
void make_score_offsets(const ScoreOffsets<T>& args, cudaStream_t stream);
template <typename Operand>
void make_losses(const ScoreRows<Operand>& args, cudaStream_t stream);

}  // namespace cuda
}  // namespace grf
