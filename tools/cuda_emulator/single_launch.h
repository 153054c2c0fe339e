// Launches of single kernels of sampled_loss, for tests of index arithmetic beyond 2^31. The whole operator would touch
// all of the memory of such large tensors. A single kernel with a block limit (set_block_limit) touches little of it.
#pragma once

#include <cstdint>
#include <map>
#include <string>

namespace grf {

// The address of each tensor, by its name in the kernel's arguments. The pointer to a tensor that is not listed is
// null.
using TensorAddresses = std::map<std::string, uintptr_t>;

// Launches cuda::make_losses with the cross-entropy loss, for m hidden states of `width` units and n negatives.
// All m rows of scores are processed together. `stride` is the number of elements from one row of scores to the next.
void launch_make_losses(int64_t m, int64_t n, int64_t width, int64_t stride, bool is_bfloat16,
                        const TensorAddresses& addresses);
// Launches cuda::make_score_offsets for m targets and n negatives. An offset is a column's bias minus its log_q, which
// is 0 here.
void launch_make_score_offsets(int64_t m, int64_t n, const TensorAddresses& addresses);

}  // namespace grf
