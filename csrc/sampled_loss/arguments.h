// The arguments and results of the operator sampled_loss, as tensors. sampled_loss/sampled_loss.cpp checks and
// allocates them, sampled_loss/cuda.cpp computes with them.
#pragma once

#include <ATen/core/Tensor.h>

#include "sampled_loss/sampled_loss.h"

namespace grf {

// The arguments of the operator, contiguous. M: rows of the score matrix, one per hidden state, each with a target
// item. N: negative items. Entries [M + N] belong to the M targets, then to the N negatives. Undefined if not given:
// all but `hidden` and `rows`.
//   hidden  [M, H], hidden states
//   rows    [M + N, H], rows of the output table
//   bias    [M + N], output bias
//   live    bool [M], false for a hidden state that has no loss
//   log_q   [M + N], subtracted from the scores
//   ids     int64 [M + N], items; a negative that equals a row's target is masked in this row
//   count   [N], how often each negative occurs
// in_batch: whether the score matrix also has columns for the targets: the other rows' targets are negatives of a row.
struct LossTensors {
  at::Tensor hidden, rows, bias, live, log_q, ids, count;
  bool in_batch;

  int64_t m() const { return hidden.size(0); }
  int64_t n() const { return rows.size(0) - m(); }
  // Returns the number of columns of the score matrix.
  int64_t columns() const { return in_batch ? m() + n() : n(); }
  // Returns the entries of `tensor` [M + N, ...] for the columns of the score matrix: all, or only those of the
  // negatives.
  at::Tensor column_entries(const at::Tensor& tensor) const { return in_batch ? tensor : tensor.narrow(0, m(), n()); }
};

// The loss and its gradients. For bfloat16 arguments they are float32, the dtype that matrix products sum in.
struct LossResults {
  at::Tensor loss, hidden, rows, bias;
};

namespace cuda {

void sampled_loss(const LossTensors& args, const LossOptions<double>& options, LossResults& results);

}  // namespace cuda
}  // namespace grf
