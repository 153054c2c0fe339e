// The five losses of a row of scores: first sums over the row's columns, then the loss and the gradients of the scores,
// which are computed from the sums. Formulas: gru4rec_fast/ops/row_losses.py.
//
// The sums are over all columns that are not masked, except the column of the row's own target. A column counts `count`
// times. One pass suffices, because weights e^x are relative to the largest x so far, as in an online softmax.
#pragma once

#include "common/simt.cuh"
#include "sampled_loss/sampled_loss.h"

namespace grf::cuda {

// The sums over some columns: values[0] is the number of columns, followed by kPlain sums without weights and kScaled
// sums whose terms have the weight e^(x - highest). `highest` is the largest x.
template <typename T, int kPlain, int kScaled>
struct RowSums {
  T highest;
  T values[1 + kPlain + kScaled];

  __device__ __forceinline__ void clear() {
    highest = -INFINITY;
#pragma unroll
    for (T& sum : values) sum = 0;
  }
  __device__ __forceinline__ T& plain(int k) { return values[1 + k]; }
  __device__ __forceinline__ T& scaled(int k) { return values[1 + kPlain + k]; }
  __device__ __forceinline__ T plain(int k) const { return values[1 + k]; }
  __device__ __forceinline__ T scaled(int k) const { return values[1 + kPlain + k]; }

  // Raises `highest` to at least x, rescales the sums and returns e^(x - highest).
  __device__ __forceinline__ T weight(T x) {
    if (x > highest) {
      const T shrink = exp(highest - x);
#pragma unroll
      for (int k = 0; k < kScaled; ++k) scaled(k) *= shrink;
      highest = x;
    }
    return exp(x - highest);
  }
  // Adds the sums of other columns. If the two `highest` are equal, their difference is not computed: -inf - -inf would
  // be NaN. A NaN that comes from the scores stays in the sums.
  __device__ __forceinline__ void merge(const RowSums& other) {
    const T top = other.highest > highest ? other.highest : highest;
    const T scale = highest == top ? T{1} : exp(highest - top);
    const T other_scale = other.highest == top ? T{1} : exp(other.highest - top);
    highest = top;
#pragma unroll
    for (int k = 0; k <= kPlain; ++k) values[k] += other.values[k];
#pragma unroll
    for (int k = 0; k < kScaled; ++k) scaled(k) = scaled(k) * scale + other.scaled(k) * other_scale;
  }
  // Returns the sums of the thread in the warp whose index differs from this thread's in the given bit (1, 2, ..., 16).
  __device__ __forceinline__ RowSums shuffled(int bit) const {
    RowSums other;
    other.highest = __shfl_xor_sync(kAllLanes, highest, bit);
#pragma unroll
    for (int k = 0; k <= kPlain + kScaled; ++k) other.values[k] = __shfl_xor_sync(kAllLanes, values[k], bit);
    return other;
  }
};

// sigmoid(x) and its derivative. The derivative is not computed as value * (1 - value), which loses all digits if the
// value is close to 1.
template <typename T>
struct Sigmoid {
  T value, slope;
  __device__ __forceinline__ explicit Sigmoid(T x) {
    const T v = exp(x > 0 ? -x : x), inverse = 1 / (1 + v);
    value = x > 0 ? inverse : v * inverse;
    slope = v * inverse * inverse;
  }
};

// Returns 1 / total, or 0 if all columns are masked and the total is therefore 0.
template <typename T>
__device__ __forceinline__ T inverse_or_zero(T total) {
  return total == 0 ? T{0} : 1 / total;
}

// One specialization per loss. Each has
//   Sums      the type of the sums
//   add       adds a column with score x and a count to all sums except values[0], which the caller counts
//   RowLoss   the constructor, which computes `loss` and `grad_target`, the gradient of the own target's score
//   gradient  returns the gradient of a column's score
// x and `target`, the own target's score, are scores after the ELU. Gradients include the factor options.scale, losses
// do not. e^(x - highest) * softmax_scale is the softmax times options.scale.
template <typename T, RankingLoss kLoss>
struct RowLoss;

template <typename T>
struct RowLoss<T, RankingLoss::cross_entropy> {
  using Sums = RowSums<T, 1, 1>;
  T highest, softmax_scale, smoothing_grad, loss, grad_target;

  static __device__ __forceinline__ void add(Sums& sums, T x, T count, T) {
    sums.scaled(0) += count * sums.weight(x);
    sums.plain(0) += count * x;
  }
  __device__ __forceinline__ RowLoss(const Sums& sums, T target, const LossOptions<T>& options) {
    const T n_others = sums.values[0], smoothing = n_others > 0 ? options.smoothing / n_others : T{0};
    highest = target > sums.highest ? target : sums.highest;
    const T others = sums.scaled(0) * exp(sums.highest - highest), total = others + exp(target - highest);
    const T log_total = highest + log(total);
    softmax_scale = options.scale / total;
    smoothing_grad = smoothing * options.scale;
    loss = (1 - options.smoothing) * (log_total - target) + smoothing * (n_others * log_total - sums.plain(0));
    grad_target = (smoothing * n_others - others / total) * options.scale;
  }
  __device__ __forceinline__ T gradient(T x, T count) const {
    return count * (exp(x - highest) * softmax_scale - smoothing_grad);
  }
};

template <typename T>
struct RowLoss<T, RankingLoss::bpr_max> {
  using Sums = RowSums<T, 0, 4>;
  // mean_sigmoid, mean_square: P and R in ops/row_losses.py, means with the softmax as weights. inverse_mean: 1 / P.
  T highest, target, elu, bpreg, softmax_scale, mean_sigmoid, mean_square, inverse_mean, loss, grad_target;

  static __device__ __forceinline__ void add(Sums& sums, T x, T count, T target) {
    const T e = count * sums.weight(x);
    const Sigmoid<T> p(target - x);
    sums.scaled(0) += e;
    sums.scaled(1) += e * p.value;
    sums.scaled(2) += e * x * x;
    sums.scaled(3) += e * p.slope;
  }
  __device__ __forceinline__ RowLoss(const Sums& sums, T target_, const LossOptions<T>& options)
      : highest(sums.highest), target(target_), elu(options.elu), bpreg(options.bpreg) {
    constexpr T kEps = static_cast<T>(1e-24);  // keeps the logarithm and the quotient finite
    const T inverse = inverse_or_zero(sums.scaled(0));
    softmax_scale = inverse * options.scale;
    mean_sigmoid = sums.scaled(1) * inverse;
    mean_square = sums.scaled(2) * inverse;
    inverse_mean = 1 / (mean_sigmoid + kEps);
    loss = -log(mean_sigmoid + kEps) + bpreg * mean_square;
    grad_target = through_elu(-sums.scaled(3) * inverse * inverse_mean * options.scale, target);
  }
  __device__ __forceinline__ T gradient(T x, T count) const {
    const Sigmoid<T> p(target - x);
    const T s = count * exp(x - highest) * softmax_scale;
    return through_elu(
        s * ((mean_sigmoid + (p.slope - p.value)) * inverse_mean + bpreg * (x * x - mean_square + 2 * x)), x);
  }
  // Returns the gradient of the ELU's input, given the gradient of its result x. For x <= 0 the derivative is x + elu.
  __device__ __forceinline__ T through_elu(T grad, T x) const { return elu == 0 || x > 0 ? grad : grad * (x + elu); }
};

template <typename T>
struct RowLoss<T, RankingLoss::top1> {
  using Sums = RowSums<T, 2, 0>;
  T target, mean_scale, loss, grad_target;

  static __device__ __forceinline__ void add(Sums& sums, T x, T count, T target) {
    const Sigmoid<T> difference_sigmoid(x - target), square_sigmoid(x * x);
    sums.plain(0) += count * (difference_sigmoid.value + square_sigmoid.value);
    sums.plain(1) += count * difference_sigmoid.slope;
  }
  __device__ __forceinline__ RowLoss(const Sums& sums, T target_, const LossOptions<T>& options) : target(target_) {
    const T n = sums.values[0] + 1;
    mean_scale = options.scale / n;
    loss = (sums.plain(0) + static_cast<T>(0.5)) / n;  // 0.5: the own target's sigmoid(0)
    grad_target = -sums.plain(1) * mean_scale;
  }
  __device__ __forceinline__ T gradient(T x, T count) const {
    const Sigmoid<T> difference_sigmoid(x - target), square_sigmoid(x * x);
    return count * (difference_sigmoid.slope + 2 * x * square_sigmoid.slope) * mean_scale;
  }
};

template <typename T>
struct RowLoss<T, RankingLoss::top1_max> {
  using Sums = RowSums<T, 0, 3>;
  T highest, target, softmax_scale, loss, grad_target;

  static __device__ __forceinline__ void add(Sums& sums, T x, T count, T target) {
    const T e = count * sums.weight(x);
    const Sigmoid<T> difference_sigmoid(x - target), square_sigmoid(x * x);
    sums.scaled(0) += e;
    sums.scaled(1) += e * (difference_sigmoid.value + square_sigmoid.value);
    sums.scaled(2) += e * difference_sigmoid.slope;
  }
  __device__ __forceinline__ RowLoss(const Sums& sums, T target_, const LossOptions<T>& options)
      : highest(sums.highest), target(target_) {
    const T inverse = inverse_or_zero(sums.scaled(0));
    softmax_scale = inverse * options.scale;
    loss = sums.scaled(1) * inverse;
    grad_target = -sums.scaled(2) * softmax_scale;
  }
  __device__ __forceinline__ T gradient(T x, T count) const {
    const Sigmoid<T> difference_sigmoid(x - target), square_sigmoid(x * x);
    const T slopes = difference_sigmoid.slope + 2 * x * square_sigmoid.slope;
    return count * exp(x - highest) * softmax_scale * (difference_sigmoid.value + square_sigmoid.value - loss + slopes);
  }
};

template <typename T>
struct RowLoss<T, RankingLoss::bpr> {
  using Sums = RowSums<T, 2, 0>;
  T target, scale, loss, grad_target;

  static __device__ __forceinline__ void add(Sums& sums, T x, T count, T target) {
    const T margin = x - target;
    // softplus(margin), exact for every argument, and its derivative, the sigmoid.
    sums.plain(0) += count * ((margin > 0 ? margin : T{0}) + log1p(exp(margin > 0 ? -margin : margin)));
    sums.plain(1) += count * Sigmoid<T>(margin).value;
  }
  __device__ __forceinline__ RowLoss(const Sums& sums, T target_, const LossOptions<T>& options)
      : target(target_), scale(options.scale) {
    loss = sums.plain(0) + static_cast<T>(0.69314718055994530942);  // log 2: the own target's softplus(0)
    grad_target = -sums.plain(1) * scale;
  }
  __device__ __forceinline__ T gradient(T x, T count) const { return count * scale * Sigmoid<T>(x - target).value; }
};

}  // namespace grf::cuda
