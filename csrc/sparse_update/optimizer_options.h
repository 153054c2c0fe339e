// The hyperparameters of the optimizers. Each optimizer has a type of options; its formula in
// sparse_update/update_rules.inc is selected by overloading on that type. Specification:
// gru4rec_fast/ops/sparse_update.py.
#pragma once

#include <cmath>
#include <cstdint>

namespace grf {

// Adagrad: acc += g^2; v = momentum * v - lr * g / sqrt(acc + eps); w += v. The state is the accumulator acc and, with
// momentum, the velocity v.
template <typename T>
struct AdagradOptions {
  T lr, momentum, eps;

  template <typename U>
  AdagradOptions<U> as() const {
    return {static_cast<U>(lr), static_cast<U>(momentum), static_cast<U>(eps)};
  }
};

// Adam: m += mean_weight * (g - m); s += square_weight * (g^2 - s); w -= step_size * m / (sqrt(s) + eps). The state is
// m and s. mean_weight = 1 - beta1 and square_weight = 1 - beta2 are computed in double and rounded to T.
template <typename T>
struct AdamOptions {
  T step_size, mean_weight, square_weight, eps;

  template <typename U>
  AdamOptions<U> as() const {
    return {static_cast<U>(step_size), static_cast<U>(mean_weight), static_cast<U>(square_weight), static_cast<U>(eps)};
  }
};

// Returns step_size, the learning rate with both bias corrections: lr sqrt(1 - beta2^step) / (1 - beta1^step). `step`
// counts from 1.
inline double adam_step_size(double lr, double beta1, double beta2, int64_t step) {
  const double t = static_cast<double>(step);
  return lr * std::sqrt(1 - std::pow(beta2, t)) / (1 - std::pow(beta1, t));
}

}  // namespace grf
