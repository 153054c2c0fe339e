// The tensors of the operator sampled_loss: what sampled_loss/sampled_loss.cpp checks and allocates, and
// sampled_loss/cuda.cpp works on.
#pragma once

#include <ATen/core/Tensor.h>

#include "sampled_loss/sampled_loss.h"

namespace grf {

// The arguments, contiguous; those that are not given, undefined.
struct LossTensors {
  at::Tensor hidden, rows, bias, live, log_q, ids, count;
  bool in_batch;

  int64_t m() const { return hidden.size(0); }
  int64_t n() const { return rows.size(0) - m(); }
  int64_t columns() const { return in_batch ? m() + n() : n(); }
  at::Tensor of_columns(const at::Tensor& tensor) const { return in_batch ? tensor : tensor.narrow(0, m(), n()); }
};

// The loss and its gradients, in the dtype that products are summed in.
struct LossResults {
  at::Tensor loss, hidden, rows, bias;
};

namespace cuda {

void sampled_loss(const LossTensors& given, const LossOptions<double>& options, LossResults& to);

}  // namespace cuda
}  // namespace grf
