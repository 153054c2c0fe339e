// Launches of single kernels, for tests of index arithmetic beyond 2^31. The operator around such a kernel would touch
// all of the memory; a single kernel with a block limit (set_block_limit) touches little of it. Tensors are given as
// addresses by name; a missing one is null.
#pragma once

#include <cstdint>
#include <map>
#include <string>

namespace grf {

using Addresses = std::map<std::string, uintptr_t>;

// Launches cuda::make_losses for all M rows as one chunk, padded, with the cross-entropy loss.
void launch_make_losses(int64_t m, int64_t n, int64_t width, int64_t stride, bool bfloat16, const Addresses& tensors);
// Launches cuda::make_score_offsets with a bias and nothing else.
void launch_make_score_offsets(int64_t m, int64_t n, const Addresses& tensors);

}  // namespace grf
