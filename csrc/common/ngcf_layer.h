// The bits of a unit's code, by which the backward pass of the NGCF layer knows what the forward pass did.
#pragma once

namespace grf {

constexpr int kFirstPositive = 1, kSecondPositive = 2, kKept = 4;  // kSecondPositive: of the second term, if per term

}  // namespace grf
