// What the NGCF layer's kernels share on every device.
#pragma once

#include <string>
#include <string_view>

namespace grf {

// The bits of a unit's code, by which the backward pass knows what the forward pass did.
constexpr int kFirstPositive = 1, kSecondPositive = 2, kKept = 4;  // kSecondPositive: of the second term, if per term

// "mean+I" as "mean" and true.
struct MatrixOf {
  std::string name;
  bool adds_identity;

  explicit MatrixOf(std::string_view matrix)
      : name(matrix), adds_identity(matrix.size() > 2 && matrix.substr(matrix.size() - 2) == "+I") {
    if (adds_identity) name.resize(name.size() - 2);
  }
};

}  // namespace grf
