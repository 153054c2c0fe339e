// Launchers alone, for tests of index arithmetic beyond 2^31: what stands before and after them in an operator would
// touch all of the memory, they in few blocks (set_block_limit) touch little of it. Tensors are given by name and
// address; those that are not named are null.
#pragma once

#include <cstdint>
#include <map>
#include <string>

namespace grf {

using Addresses = std::map<std::string, uintptr_t>;

// All M rows as one chunk, in the padded form, by cross-entropy; and a bias alone as offsets.
void make_losses_alone(int64_t m, int64_t n, int64_t width, int64_t stride, bool bfloat16, const Addresses& tensors);
void make_score_offsets_alone(int64_t m, int64_t n, const Addresses& tensors);

}  // namespace grf
