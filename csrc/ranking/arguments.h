// The tensors of the operators target_rank and top_k, which ranking/ranking.cpp checks and allocates, and
// ranking/cuda.cpp works on.
#pragma once

#include <ATen/core/Tensor.h>

#include "ranking/ranking.h"

namespace grf {

// Hidden states, catalogue and bias, contiguous on one device; bias undefined where there is none.
struct RankingTensors {
  at::Tensor hidden, weight, bias;
};

namespace cuda {

// greater and equal: zeros.
void target_rank(const RankingTensors& given, const at::Tensor& targets, const at::Tensor& greater,
                 const at::Tensor& equal);
// exclude [Q, E], each row rising.
void top_k(const RankingTensors& given, const at::Tensor& exclude, const at::Tensor& scores, const at::Tensor& items);

}  // namespace cuda
}  // namespace grf
