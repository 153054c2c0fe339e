// The arguments and results of the operator sampled_loss, as tensors. sampled_loss/sampled_loss.cpp checks and
// allocates them, sampled_loss/cuda.cpp computes with them.
#pragma once

#include <ATen/core/Tensor.h>

#include "sampled_loss/sampled_loss.h"

namespace grf {

// The contiguous arguments of the operator, named as in the schema. Optional tensors may be undefined.
struct LossTensors {
  at::Tensor hidden, rows, bias, live, log_q, ids, count;
  bool in_batch;

  int64_t m() const { return hidden.size(0); }
  int64_t n() const { return rows.size(0) - m(); }
  // Returns the number of columns of the score matrix.
  int64_t columns() const { return in_batch ? m() + n() : n(); }
  // Returns the entries of a tensor [M + N, ...] that belong to these columns.
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
