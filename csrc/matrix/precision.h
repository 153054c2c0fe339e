// The precision of a matrix product's operands.
#pragma once

namespace grf {

// What float operands are multiplied as. `bf16`: both rounded to bfloat16 (to nearest, ties to even; denormals to 0),
// their products summed in float. Where the processor has instructions for that, these flush denormal sums to 0 too;
// elsewhere the rounded numbers go through the full product. No effect on double.
enum class Precision { full, bf16 };

}  // namespace grf
