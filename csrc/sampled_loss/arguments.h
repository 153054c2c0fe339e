// The tensors of the operator sampled_loss. sampled_loss/sampled_loss.cpp checks and allocates them,
// sampled_loss/cuda.cpp computes with them.
#pragma once

#include <ATen/core/Tensor.h>

#include "sampled_loss/sampled_loss.h"

namespace grf {

// The arguments of the operator, contiguous. Optional tensors may be undefined.
struct LossTensors {
  at::Tensor hidden, rows, bias, live, log_q, ids, count;
  bool in_batch;

  int64_t m() const { return hidden.size(0); }
  int64_t n() const { return rows.size(0) - m(); }
  // The columns of the score matrix, and the entries [M + N, ...] of a tensor that belong to them.
  int64_t columns() const { return in_batch ? m() + n() : n(); }
  at::Tensor column_entries(const at::Tensor& tensor) const { return in_batch ? tensor : tensor.narrow(0, m(), n()); }
};

// The loss and its gradients, in the dtype of the products' sums: float32 for bfloat16 operands.
struct LossResults {
  at::Tensor loss, hidden, rows, bias;
};

namespace cuda {

void sampled_loss(const LossTensors& args, const LossOptions<double>& options, LossResults& results);

}  // namespace cuda
}  // namespace grf
