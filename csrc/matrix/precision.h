// The precision that a matrix product rounds its operands to.
#pragma once

namespace grf {

// `full`: operands are multiplied as they are. `bf16`: float operands are rounded to bfloat16 (to nearest, ties to
// even; denormals to 0), and their products are summed in float; double operands are multiplied as they are. A
// processor with bfloat16 instructions multiplies the rounded operands by these instructions, which also flush denormal
// sums to 0. On any other processor, the float kernels multiply the rounded operands.
enum class Precision { full, bf16 };

}  // namespace grf
