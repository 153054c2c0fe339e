// The checked arguments of the operators target_rank and top_k, which ranking/ranking.cpp passes to ranking/cuda.cpp.
#pragma once

#include <ATen/core/Tensor.h>

#include "ranking/ranking.h"

namespace grf {  // gru4rec_fast

// Queries [Q, H], item vectors [I, H] and bias [I] (undefined if None), contiguous on one device.
struct RankingTensors {
  at::Tensor hidden, weight, bias;
};

namespace cuda {

// Writes the number of items that score higher than each query's target to greater [Q], and the number of other items
// that score exactly as high to equal [Q]. On entry, all elements of `greater` and `equal` must be zero.
void target_rank(const RankingTensors& tensors, const at::Tensor& targets, const at::Tensor& greater,
                 const at::Tensor& equal);
// Writes the k best items of each query and their scores, [Q, k]. Items in the query's row of exclude [Q, E] are left
// out. Each row must be in increasing order.
void top_k(const RankingTensors& tensors, const at::Tensor& exclude, const at::Tensor& scores, const at::Tensor& items);

}  // namespace cuda
}  // namespace grf
