// The five losses of a row of scores: what is summed over its columns, and from that its loss and its gradient.
// Formulas: gru4rec_fast/ops/row_losses.py, whose names are used here.
//
// Sums are over the columns that the row sees but its own, each as often as it counts, in one pass: weights e^x are
// kept relative to the largest x so far.
#pragma once

#include "common/simt.cuh"
#include "sampled_loss/sampled_loss.h"

namespace grf::cuda {

// of[0]: how many columns; further plain sums; then kScaled sums weighted by e^(x - highest).
template <typename T, int kPlain, int kScaled>
struct RowSums {
  T highest;
  T of[1 + kPlain + kScaled];

  __device__ __forceinline__ void clear() {
    highest = -INFINITY;
#pragma unroll
    for (T& sum : of) sum = 0;
  }
  __device__ __forceinline__ T& plain(int k) { return of[1 + k]; }
  __device__ __forceinline__ T& scaled(int k) { return of[1 + kPlain + k]; }
  __device__ __forceinline__ T plain(int k) const { return of[1 + k]; }
  __device__ __forceinline__ T scaled(int k) const { return of[1 + kPlain + k]; }

  // e^(x - highest), where highest is made to be no less than x.
  __device__ __forceinline__ T weight(T x) {
    if (x > highest) {
      const T shrink = exp(highest - x);
#pragma unroll
      for (int k = 0; k < kScaled; ++k) scaled(k) *= shrink;
      highest = x;
    }
    return exp(x - highest);
  }
  // Equal exponents first: -inf - -inf would be NaN, and a NaN that is there has to stay.
  __device__ __forceinline__ void merge(const RowSums& other) {
    const T top = other.highest > highest ? other.highest : highest;
    const T mine = highest == top ? T{1} : exp(highest - top);
    const T theirs = other.highest == top ? T{1} : exp(other.highest - top);
    highest = top;
#pragma unroll
    for (int k = 0; k <= kPlain; ++k) of[k] += other.of[k];
#pragma unroll
    for (int k = 0; k < kScaled; ++k) scaled(k) = scaled(k) * mine + other.scaled(k) * theirs;
  }
  // Those of the lane whose number differs in the bits `with`.
  __device__ __forceinline__ RowSums shuffled(int with) const {
    RowSums other;
    other.highest = __shfl_xor_sync(kAllLanes, highest, with);
#pragma unroll
    for (int k = 0; k <= kPlain + kScaled; ++k) other.of[k] = __shfl_xor_sync(kAllLanes, of[k], with);
    return other;
  }
};

// Nothing cancels in the slope, value * (1 - value), however close to 1 the value.
template <typename T>
struct Sigmoid {
  T value, slope;
  __device__ __forceinline__ explicit Sigmoid(T x) {
    const T e = exp(x > 0 ? -x : x), inverse = 1 / (1 + e);
    value = x > 0 ? inverse : e * inverse;
    slope = e * inverse * inverse;
  }
};

// 1 / total, and 0 where nothing was summed: what is shared out among no columns is 0.
template <typename T>
__device__ __forceinline__ T inverse_or_zero(T total) {
  return total == 0 ? T{0} : 1 / total;
}

// Each of these has: Sums, and add(), which adds a column of score x that counts `count` times; a constructor from all
// sums, after which `loss` and `grad_own` are there and gradient() gives that of a column. x and own are activated.
// Losses are not scaled, gradients are.
template <typename T, RankingLoss kLoss>
struct RowLoss;

template <typename T>
struct RowLoss<T, RankingLoss::cross_entropy> {
  using Sums = RowSums<T, 1, 1>;
  T highest, share, rest, loss, grad_own;

  static __device__ __forceinline__ void add(Sums& sums, T x, T count, T) {
    sums.scaled(0) += count * sums.weight(x);
    sums.plain(0) += count * x;
  }
  __device__ __forceinline__ RowLoss(const Sums& sums, T own, const LossOptions<T>& options) {
    const T n_others = sums.of[0], smoothing = n_others > 0 ? options.smoothing / n_others : T{0};
    highest = own > sums.highest ? own : sums.highest;
    const T others = sums.scaled(0) * exp(sums.highest - highest), total = others + exp(own - highest);
    const T log_total = highest + log(total);
    share = options.scale / total;
    rest = smoothing * options.scale;
    loss = (1 - options.smoothing) * (log_total - own) + smoothing * (n_others * log_total - sums.plain(0));
    grad_own = (smoothing * n_others - others / total) * options.scale;
  }
  __device__ __forceinline__ T gradient(T x, T count) const { return count * (exp(x - highest) * share - rest); }
};

template <typename T>
struct RowLoss<T, RankingLoss::bpr_max> {
  using Sums = RowSums<T, 0, 4>;
  T highest, own, elu, bpreg, share, total, square, pull, loss, grad_own;

  static __device__ __forceinline__ void add(Sums& sums, T x, T count, T own) {
    const T e = count * sums.weight(x);
    const Sigmoid<T> p(own - x);
    sums.scaled(0) += e;
    sums.scaled(1) += e * p.value;
    sums.scaled(2) += e * x * x;
    sums.scaled(3) += e * p.slope;
  }
  __device__ __forceinline__ RowLoss(const Sums& sums, T own_, const LossOptions<T>& options)
      : highest(sums.highest), own(own_), elu(options.elu), bpreg(options.bpreg) {
    constexpr T kEps = static_cast<T>(1e-24);
    const T inverse = inverse_or_zero(sums.scaled(0));
    share = inverse * options.scale;
    total = sums.scaled(1) * inverse;
    square = sums.scaled(2) * inverse;
    pull = 1 / (total + kEps);
    loss = -log(total + kEps) + bpreg * square;
    grad_own = through_elu(-sums.scaled(3) * inverse * pull * options.scale, own);
  }
  __device__ __forceinline__ T gradient(T x, T count) const {
    const Sigmoid<T> p(own - x);
    const T s = count * exp(x - highest) * share;
    return through_elu(s * ((total + (p.slope - p.value)) * pull + bpreg * (x * x - square + 2 * x)), x);
  }
  __device__ __forceinline__ T through_elu(T grad, T x) const { return elu == 0 || x > 0 ? grad : grad * (x + elu); }
};

template <typename T>
struct RowLoss<T, RankingLoss::top1> {
  using Sums = RowSums<T, 2, 0>;
  T own, share, loss, grad_own;

  static __device__ __forceinline__ void add(Sums& sums, T x, T count, T own) {
    const Sigmoid<T> p(x - own), square(x * x);
    sums.plain(0) += count * (p.value + square.value);
    sums.plain(1) += count * p.slope;
  }
  __device__ __forceinline__ RowLoss(const Sums& sums, T own_, const LossOptions<T>& options) : own(own_) {
    const T n = sums.of[0] + 1;
    share = options.scale / n;
    loss = (sums.plain(0) + static_cast<T>(0.5)) / n;  // 0.5: the own column's sigmoid(0)
    grad_own = -sums.plain(1) * share;
  }
  __device__ __forceinline__ T gradient(T x, T count) const {
    const Sigmoid<T> p(x - own), square(x * x);
    return count * (p.slope + 2 * x * square.slope) * share;
  }
};

template <typename T>
struct RowLoss<T, RankingLoss::top1_max> {
  using Sums = RowSums<T, 0, 3>;
  T highest, own, share, loss, grad_own;

  static __device__ __forceinline__ void add(Sums& sums, T x, T count, T own) {
    const T e = count * sums.weight(x);
    const Sigmoid<T> p(x - own), square(x * x);
    sums.scaled(0) += e;
    sums.scaled(1) += e * (p.value + square.value);
    sums.scaled(2) += e * p.slope;
  }
  __device__ __forceinline__ RowLoss(const Sums& sums, T own_, const LossOptions<T>& options)
      : highest(sums.highest), own(own_) {
    const T inverse = inverse_or_zero(sums.scaled(0));
    share = inverse * options.scale;
    loss = sums.scaled(1) * inverse;
    grad_own = -sums.scaled(2) * share;
  }
  __device__ __forceinline__ T gradient(T x, T count) const {
    const Sigmoid<T> p(x - own), square(x * x);
    const T slopes = p.slope + 2 * x * square.slope;
    return count * exp(x - highest) * share * (p.value + square.value - loss + slopes);
  }
};

template <typename T>
struct RowLoss<T, RankingLoss::bpr> {
  using Sums = RowSums<T, 2, 0>;
  T own, scale, loss, grad_own;

  static __device__ __forceinline__ void add(Sums& sums, T x, T count, T own) {
    const T above = x - own;  // softplus(above), exact for every argument, and its slope
    sums.plain(0) += count * ((above > 0 ? above : T{0}) + log1p(exp(above > 0 ? -above : above)));
    sums.plain(1) += count * Sigmoid<T>(above).value;
  }
  __device__ __forceinline__ RowLoss(const Sums& sums, T own_, const LossOptions<T>& options)
      : own(own_), scale(options.scale) {
    loss = sums.plain(0) + static_cast<T>(0.69314718055994530942);  // the own column's log 2
    grad_own = -sums.plain(1) * scale;
  }
  __device__ __forceinline__ T gradient(T x, T count) const { return count * scale * Sigmoid<T>(x - own).value; }
};

}  // namespace grf::cuda
