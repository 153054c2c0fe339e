// The arguments and results of the operator sampled_loss, as tensors. sampled_loss/sampled_loss.cpp checks the
// arguments and allocates the results. sampled_loss/cuda.cpp computes the results on a GPU.
#pragma once

#include <ATen/core/Tensor.h>

#include "sampled_loss/sampled_loss.h"

namespace grf {

// The arguments of the operator, contiguous. The score matrix has M rows: one per hidden state, each with a target
// item. N is the number of negative items. In a tensor [M + N, ...], the first M elements belong to the targets and the
// other N to the negatives. All tensors but `hidden` and `rows` are undefined if their argument is None.
//   hidden  [M, H], hidden states; more columns, if any, are multiplied only for the gradient of rows
//   rows    [M + N, H], rows of the output table
//   bias    [M + N], output bias
//   live    bool [M], false for a hidden state that has no loss
//   log_q   [M + N], subtracted from the scores (logQ correction)
//   ids     int64 [M + N], items; a negative that equals a row's target is masked in this row
//   count   [N], how often each negative occurs
//   offsets [M + N], added to the scores in place of bias and log_q; -inf for the targets of dead rows
// in_batch: if true, the score matrix also has columns for the targets, and a row's negatives include the other rows'
// targets.
struct LossTensors {
  at::Tensor hidden, rows, bias, live, log_q, ids, count;
  bool in_batch;
  at::Tensor offsets;

  int64_t m() const { return hidden.size(0); }
  int64_t n() const { return rows.size(0) - m(); }
  // Returns the number of columns of the score matrix.
  int64_t columns() const { return in_batch ? m() + n() : n(); }
  // Returns the elements of `tensor` [M + N, ...] that belong to columns of the score matrix: all elements, or only
  // the elements of the negatives.
  at::Tensor column_entries(const at::Tensor& tensor) const { return in_batch ? tensor : tensor.narrow(0, m(), n()); }
};

// The loss, or the losses of all rows if it is [M], and its gradients with respect to hidden, rows and bias. The
// gradient of the bias may be undefined. If `hidden` has more columns than H, so has the gradient of rows, with their
// products. For bfloat16 arguments all are float32, because products of bfloat16 matrices are summed in float32.
struct LossResults {
  at::Tensor loss, hidden, rows, bias;
};

namespace cuda {

// Computes all elements of `results`.
void sampled_loss(const LossTensors& args, const LossOptions<double>& options, LossResults& results);

}  // namespace cuda
}  // namespace grf
