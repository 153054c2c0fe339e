// The sampled loss's options, and the launchers of its CUDA kernels. Specification:
// gru4rec_fast/ops/sampled_loss.py and sampled_loss_gradients.py, whose names these are.
#pragma once

#include <cstdint>
#include <string_view>

#include "common/bfloat16.h"
#include "common/stream.h"

namespace grf {

enum class RankingLoss { cross_entropy, bpr_max, top1, top1_max, bpr };

// ValueError where there is none of that name.
RankingLoss loss_named(std::string_view name);

template <typename T>
struct LossOptions {
  RankingLoss loss;
  T elu, bpreg, smoothing, scale;  // elu: 0 where there is none; scale: on gradients, 1 / batch_size

  template <typename U>
  LossOptions<U> as() const {
    return {loss, static_cast<U>(elu), static_cast<U>(bpreg), static_cast<U>(smoothing), static_cast<U>(scale)};
  }
};

namespace cuda {

// How much of the score matrix is there at once, how long a row may be that a block keeps in shared memory, and the
// threads of a block.
#ifdef GRF_EMULATED
constexpr int64_t kScoreBytes = int64_t{96} << 10;  // small problems have to have several chunks, and long rows
constexpr int64_t kLeastScoreRows = 16;
constexpr int64_t kSharedRowBytes = 1 << 10;
constexpr int kLossThreads = 64;
#else
constexpr int64_t kScoreBytes = int64_t{32} << 20;  // stays in L2 between the products and passes over it
constexpr int64_t kLeastScoreRows = 128;            // fewer would leave a product without work for all of a GPU
constexpr int64_t kSharedRowBytes = 44 << 10;  // with the sums of warps less than 48 KB: four rows and more on an SM
constexpr int kLossThreads = 256;
#endif

// What is added to the score of each column.
template <typename T>
struct ScoreOffsets {
  int64_t m, n;           // M, N
  bool in_batch;          // a column whose row is dead is seen by none
  const T *bias, *log_q;  // [M + N], or null
  const bool* live;       // [M], or null
  T* offsets;             // [M + N], written: -inf where no row sees the column
};

// A chunk of rows, whose scores become their gradients. In-batch, a row's columns are those of `rows`, its own one
// among them. Otherwise they are the N negatives; its own target's score and gradients are made here, beside the
// products.
//
// Operand: what products multiply, the numbers of `hidden` and `rows` and the scores' gradients. All else is of the
// type they are summed in; gradients are made in it and rounded once.
template <typename Operand>
struct ScoreRows {
  using T = typename Stored<Operand>::Sum;
  LossOptions<T> options;
  int64_t m, n, width;  // M, N, H
  bool in_batch;
  int64_t first, n_rows;                   // the chunk's rows of `hidden`
  const Operand *hidden, *rows;            // [M, H], [M + N, H]
  const T* offsets;                        // [M + N], or null: none
  const T* count;                          // [N], how often each negative occurs; null: once
  const bool* live;                        // [M], or null
  const int64_t* ids;                      // [M + N], or null
  int64_t stride;                          // numbers from row to row of scores and grads
  T* scores;                               // [n_rows, stride]: products
  Operand* grads;                          // [n_rows, stride], written; may be `scores`
  T* losses;                               // [M], written, scaled
  T *grad_hidden, *grad_rows, *grad_bias;  // not in-batch: those of the own target, written

  // The columns that the products make, and the row of `rows` they begin with.
  constexpr int64_t columns() const { return in_batch ? m + n : n; }
  constexpr int64_t first_column() const { return in_batch ? 0 : m; }
};

template <typename T>
void make_score_offsets(const ScoreOffsets<T>& columns, cudaStream_t stream);
template <typename Operand>
void make_losses(const ScoreRows<Operand>& rows, cudaStream_t stream);

}  // namespace cuda
}  // namespace grf
