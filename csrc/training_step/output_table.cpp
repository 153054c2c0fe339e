#include "training_step/output_table.h"

#include <ATen/Parallel.h>

#include <algorithm>

#include "common/operator.h"
#include "common/rows.h"
#include "matrix/product.h"

namespace grf {

template <typename T>
T* RowGradients<T>::append(const int64_t* index, int64_t n, int64_t width) {
  const size_t before = grad_.size();
  index_.insert(index_.end(), index, index + n);
  grad_.resize(before + static_cast<size_t>(n * width));
  return grad_.data() + before;
}

template <typename T>
void RowGradients<T>::append_live(const int64_t* index, int64_t n, int64_t width, const T* grad) {
  for (int64_t i = 0; i < n; ++i) {
    if (index[i] >= 0) std::copy_n(grad + i * width, width, append(index + i, 1, width));
  }
}

template <typename T>
void RowGradients<T>::scale(T factor) {
  for (T& number : grad_) number *= factor;
}

template <typename T>
void RowGradients<T>::apply(const RowTable<T>& table, const AdagradOptions<T>& options) {
  update_rows(table, index_.data(), static_cast<int64_t>(index_.size()), grad_.data(), options);
  forget();
}

template <typename T>
OutputTable<T>::OutputTable(const Parameter& weight, const Parameter& bias, const at::Tensor& log_support,
                            const ScoreOptions& options)
    : weight_(weight.rows<T>("output.weight")), bias_(bias.rows<T>("output.bias")), options_(options) {
  if (log_support.defined()) {
    log_support_ = contiguous(log_support, "log_support", {n_items()}, c10::CppTypeToScalarType<T>::value);
  }
}

// The hidden states of live lanes, and their targets as the first columns.
template <typename T>
void OutputTable<T>::take_live(const T* hidden, const int64_t* targets, int64_t lanes) {
  live_.clear(), items_.clear();
  for (int64_t lane = 0; lane < lanes; ++lane) {
    if (targets[lane] < 0) continue;
    live_.push_back(lane);
    items_.push_back(targets[lane]);
  }
  problem_.m = static_cast<int64_t>(live_.size());
  problem_.hidden = hidden;
  if (problem_.m == lanes) return;
  T* compact = live_hidden_.room(problem_.m * width());
  gather_rows(hidden, width(), live_.data(), problem_.m, compact);
  problem_.hidden = compact;
}

// The distinct negatives as further columns, and how often each was drawn.
template <typename T>
void OutputTable<T>::take_distinct(const int64_t* negatives, int64_t n) {
  int64_t* room = order_.room(2 * n);
  const int64_t* sorted = sort_rows(negatives, n, n_items(), room, room + n);
  counts_.clear();
  for (int64_t i = 0; i < n; ++i) {
    if (i > 0 && sorted[i] == sorted[i - 1]) {
      counts_.back() += 1;
    } else {
      items_.push_back(sorted[i]);
      counts_.push_back(1);
    }
  }
  problem_.n = static_cast<int64_t>(counts_.size());
  problem_.count = counts_.data();
}

// The columns' rows of the table, biases and corrections.
template <typename T>
void OutputTable<T>::gather_columns() {
  const int64_t m = problem_.m, columns = problem_.m + problem_.n;
  T *rows = rows_.room(columns * width()), *bias = bias_and_log_q_.room(2 * columns), *log_q = bias + columns;
  gather_rows(weight_.weight, width(), items_.data(), columns, rows);
  for (int64_t j = 0; j < columns; ++j) bias[j] = bias_.weight[items_[j]];
  problem_.rows = rows, problem_.bias = bias, problem_.log_q = nullptr;
  if (!log_support_.defined()) return;
  const T* log_support = log_support_.const_data_ptr<T>();
  const T logq = static_cast<T>(options_.logq), alpha = static_cast<T>(options_.sample_alpha);
  for (int64_t j = 0; j < columns; ++j) log_q[j] = logq * log_support[items_[j]] * (j < m ? T{1} : alpha);
  problem_.log_q = log_q;
}

template <typename T>
void OutputTable<T>::begin(const T* hidden, const int64_t* targets, int64_t lanes, const int64_t* negatives, int64_t n,
                           double share) {
  take_live(hidden, targets, lanes);
  take_distinct(negatives, n);
  problem_.width = width(), problem_.in_batch = true, problem_.precision = options_.precision;
  problem_.ids = options_.mask_accidental_hits ? items_.data() : nullptr;
  problem_.options = {options_.loss, static_cast<T>(options_.elu_param), static_cast<T>(options_.bpreg),
                      static_cast<T>(options_.label_smoothing), static_cast<T>(share / options_.batch_size)};
  gather_columns();
  const int64_t stride = problem_.score_stride();
  prepared_ = problem_.prepare_columns(columns_.room(2 * stride));
  grad_scores_ = scores_.room(problem_.m * stride);
  losses_.resize(static_cast<size_t>(problem_.m));
}

template <typename T>
void OutputTable<T>::score_lanes(int64_t first, int64_t count, T* grad_hidden) {
  T* scores = grad_scores_ + first * problem_.score_stride();
  problem_.score_rows(first, count, prepared_, scores, losses_.data() + first);
  problem_.hidden_gradient(count, scores, grad_hidden + first * width());
}

template <typename T>
double OutputTable<T>::loss() const {
  double sum = 0;
  for (const T loss : losses_) sum += loss;
  return static_cast<T>(sum / options_.batch_size);
}

template <typename T>
double OutputTable<T>::score(const T* hidden, const int64_t* targets, int64_t lanes, const int64_t* negatives,
                             int64_t n, double share, T* grad_hidden) {
  begin(hidden, targets, lanes, negatives, n, share);
  const int64_t m = problem_.m;
  if (m == lanes) {
    score_lanes(0, m, grad_hidden);
    return loss();
  }
  T* compact = live_grad_.room(m * width());
  score_lanes(0, m, compact);
  std::fill_n(grad_hidden, lanes * width(), T{0});
  for (int64_t i = 0; i < m; ++i) std::copy_n(compact + i * width(), width(), grad_hidden + live_[i] * width());
  return loss();
}

template <typename T>
void OutputTable<T>::keep_gradient() {
  const int64_t columns = problem_.m + problem_.n, stride = problem_.score_stride();
  const Matrix<T> grad{grad_scores_, stride}, h{problem_.hidden, width()};
  multiply(columns, width(), problem_.m, grad.transposed(), h, kept_weight_.append(items_.data(), columns, width()),
           width(), false, options_.precision);
  add_column_sums(grad_scores_, problem_.m, columns, stride, kept_bias_.append(items_.data(), columns, 1));
}

template <typename T>
void OutputTable<T>::scale_gradients(T factor) {
  kept_weight_.scale(factor);
  kept_bias_.scale(factor);
}

template <typename T>
void OutputTable<T>::apply(const AdagradOptions<T>& options) {
  kept_weight_.apply(weight_, options);
  kept_bias_.apply(bias_, options);
}

// The gradients that rows get as targets and as inputs, and their positions in the order of the rows.
template <typename T>
void OutputTable<T>::take_extra(const int64_t* inputs, int64_t n, const T* grad_inputs) {
  const int64_t m = problem_.m, width = this->width();
  extra_.assign(items_.begin(), items_.begin() + m);
  extra_grad_ = extra_room_.room((m + n) * width);
  const Matrix<T> grad{grad_scores_, problem_.score_stride()}, h{problem_.hidden, width};
  multiply(m, width, m, grad.transposed(), h, extra_grad_, width, false, options_.precision);
  for (int64_t i = 0; i < n; ++i) {
    if (inputs[i] < 0) continue;
    std::copy_n(grad_inputs + i * width, width, extra_grad_ + static_cast<int64_t>(extra_.size()) * width);
    extra_.push_back(inputs[i]);
  }
  const int64_t size = static_cast<int64_t>(extra_.size());
  int64_t* room = order_.room(2 * size);
  extra_order_ = sort_positions(extra_.data(), size, n_items(), room, room + size);
}

// Which positions belong to which negative, and which rows are none. Both rise, so that one walk along them is enough.
template <typename T>
void OutputTable<T>::match_extra() {
  const size_t size = extra_.size();
  size_t at = 0;
  const auto row = [&](size_t i) { return extra_[extra_order_[i]]; };
  const auto take = [&](std::vector<Extra>& to, int64_t wanted) {
    const size_t begin = at;
    while (at < size && row(at) == wanted) ++at;
    to.push_back({wanted, extra_order_ + begin, static_cast<int64_t>(at - begin)});
  };
  of_negatives_.clear(), of_others_.clear();
  for (int64_t d = 0; d < problem_.n; ++d) {
    const int64_t negative = items_[static_cast<size_t>(problem_.m + d)];
    while (at < size && row(at) < negative) take(of_others_, row(at));
    take(of_negatives_, negative);
  }
  while (at < size) take(of_others_, row(at));
}

template <typename T>
void OutputTable<T>::update(const int64_t* inputs, int64_t n, const T* grad_inputs, const AdagradOptions<T>& options) {
  const int64_t m = problem_.m, columns = m + problem_.n, stride = problem_.score_stride(), width = this->width();
  take_extra(inputs, n, grad_inputs);
  match_extra();
  T* sums = sums_.room(columns);
  std::fill_n(sums, columns, T{0});
  add_column_sums(grad_scores_, m, columns, stride, sums);
  // `first` and `bias`: the gradients that a row gets as a negative, or null.
  const auto move = [&](const Extra& extra, const T* first, const T* bias, int64_t next) {
    update_row(weight_, extra.row, first, extra_grad_, extra.position, extra.n, options, next);
    int64_t n_targets = 0;
    while (n_targets < extra.n && extra.position[n_targets] < m) ++n_targets;
    if (bias != nullptr || n_targets > 0) {
      update_row(bias_, extra.row, bias, sums, extra.position, n_targets, options);
    }
  };
  const auto move_negatives = [&](int64_t first, int64_t rows, const T* block) {
    for (int64_t i = 0; i < rows; ++i) {
      const int64_t d = first + i;
      move(of_negatives_[d], block + i * width, sums + m + d, i + 1 < rows ? of_negatives_[d + 1].row : -1);
    }
  };
  const Matrix<T> grad{grad_scores_, stride}, h{problem_.hidden, width};
  multiply_by_blocks<T>(problem_.n, width, m, grad.skip(0, m).transposed(), h, move_negatives, options_.precision);
  const int64_t n_others = static_cast<int64_t>(of_others_.size());
  at::parallel_for(0, n_others, std::max<int64_t>(1, 8192 / width), [&](int64_t from, int64_t to) {
    for (int64_t i = from; i < to; ++i) move(of_others_[i], nullptr, nullptr, i + 1 < to ? of_others_[i + 1].row : -1);
  });
}

template class RowGradients<float>;
template class RowGradients<double>;
template class OutputTable<float>;
template class OutputTable<double>;

}  // namespace grf
