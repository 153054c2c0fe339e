// Checked arguments of the operators target_rank and top_k: ranking/ranking.cpp makes them, ranking/cuda.cpp uses them.
#pragma once

#include <ATen/core/Tensor.h>

#include "ranking/ranking.h"

namespace grf {

// Queries [Q, H], item vectors [I, H] and bias [I] (undefined if None), contiguous on one device.
struct RankingTensors {
  at::Tensor hidden, weight, bias;
};

namespace cuda {

// Adds the counts to greater and equal [Q], which are zero.
void target_rank(const RankingTensors& tensors, const at::Tensor& targets, const at::Tensor& greater,
                 const at::Tensor& equal);
// Writes scores and items [Q, k]. Each row of exclude [Q, E] is in increasing order.
void top_k(const RankingTensors& tensors, const at::Tensor& exclude, const at::Tensor& scores, const at::Tensor& items);

}  // namespace cuda
}  // namespace grf
