// The numbers of the optimizer rules; a rule is the type of its options. Specification:
// gru4rec_fast/ops/sparse_update.py; sparse_update/update_rules.inc has the formulas.
#pragma once

#include <cmath>
#include <cstdint>

namespace grf {

// acc += g^2; v = momentum * v - lr * g / sqrt(acc + eps); w += v. State: acc, and v where there is momentum.
template <typename T>
struct AdagradOptions {
  T lr, momentum, eps;

  template <typename U>
  AdagradOptions<U> as() const {
    return {static_cast<U>(lr), static_cast<U>(momentum), static_cast<U>(eps)};
  }
};

// m += rest1 * (g - m); s += rest2 * (g^2 - s); w -= size * m / (sqrt(s) + eps). State: m, s. `rest` is 1 - beta,
// subtracted before it was rounded to T; `size` adam_step_size.
template <typename T>
struct AdamOptions {
  T size, rest1, rest2, eps;

  template <typename U>
  AdamOptions<U> as() const {
    return {static_cast<U>(size), static_cast<U>(rest1), static_cast<U>(rest2), static_cast<U>(eps)};
  }
};

// The learning rate with both bias corrections at a step, which counts from 1: lr sqrt(1 - beta2^step) / (1 -
// beta1^step).
inline double adam_step_size(double lr, double beta1, double beta2, int64_t step) {
  const double count = static_cast<double>(step);
  return lr * std::sqrt(1 - std::pow(beta2, count)) / (1 - std::pow(beta1, count));
}

}  // namespace grf
