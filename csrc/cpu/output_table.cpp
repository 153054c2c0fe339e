#include "cpu/output_table.h"

#include <ATen/Parallel.h>

#include <algorithm>

#include "cpu/product.h"
#include "cpu/rows.h"

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
  index_.clear();
  grad_.clear();
}

template <typename T>
OutputTable<T>::OutputTable(const Parameter& weight, const Parameter& bias, const at::Tensor& log_support,
                            const ScoreOptions& options)
    : weight_(weight.rows<T>("output.weight")),
      bias_(bias.rows<T>("output.bias")),
      log_support_(log_support.defined() ? log_support.const_data_ptr<T>() : nullptr),
      options_(options) {}

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
  const int64_t* order = sort_positions(negatives, n, n_items(), room, room + n);
  counts_.clear();
  for (int64_t i = 0; i < n; ++i) {
    if (i > 0 && negatives[order[i]] == items_.back()) {
      counts_.back() += 1;
    } else {
      items_.push_back(negatives[order[i]]);
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
  if (log_support_ == nullptr) return;
  const T logq = static_cast<T>(options_.logq), alpha = static_cast<T>(options_.sample_alpha);
  for (int64_t j = 0; j < columns; ++j) log_q[j] = logq * log_support_[items_[j]] * (j < m ? T{1} : alpha);
  problem_.log_q = log_q;
}

template <typename T>
double OutputTable<T>::score(const T* hidden, const int64_t* targets, int64_t lanes, const int64_t* negatives,
                             int64_t n, double share, T* grad_hidden) {
  take_live(hidden, targets, lanes);
  take_distinct(negatives, n);
  problem_.width = width(), problem_.in_batch = true, problem_.precision = options_.precision;
  problem_.ids = options_.mask_accidental_hits ? items_.data() : nullptr;
  problem_.params = {options_.loss, static_cast<T>(options_.elu_param), static_cast<T>(options_.bpreg),
                     static_cast<T>(options_.label_smoothing), static_cast<T>(share / options_.batch_size)};
  gather_columns();
  const int64_t m = problem_.m, stride = problem_.score_stride();
  grad_scores_ = scores_.room(m * stride);
  losses_.resize(static_cast<size_t>(m));
  problem_.score_rows(0, m, problem_.prepare_columns(columns_.room(2 * stride)), grad_scores_, losses_.data());
  if (m == lanes) {
    problem_.hidden_gradient(m, grad_scores_, grad_hidden);
  } else {
    T* compact = live_grad_.room(m * width());
    problem_.hidden_gradient(m, grad_scores_, compact);
    std::fill_n(grad_hidden, lanes * width(), T{0});
    for (int64_t i = 0; i < m; ++i) std::copy_n(compact + i * width(), width(), grad_hidden + live_[i] * width());
  }
  double sum = 0;
  for (const T loss : losses_) sum += loss;
  return static_cast<T>(sum / options_.batch_size);
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

template <typename T>
void OutputTable<T>::update(const int64_t* inputs, int64_t n, const T* grad_inputs, const AdagradOptions<T>& options) {
  const int64_t m = problem_.m, n_negatives = problem_.n, stride = problem_.score_stride(), width = this->width();
  const Matrix<T> grad{grad_scores_, stride}, h{problem_.hidden, width};

  // What rows get as targets and as inputs: gradients [m + n, width], and their positions in the order of the rows.
  std::vector<int64_t> extra(items_.begin(), items_.begin() + m);
  T* extra_grad = extra_grad_.room((m + n) * width);
  multiply(m, width, m, grad.transposed(), h, extra_grad, width, false, options_.precision);
  for (int64_t i = 0; i < n; ++i) {
    if (inputs[i] < 0) continue;
    std::copy_n(grad_inputs + i * width, width, extra_grad + static_cast<int64_t>(extra.size()) * width);
    extra.push_back(inputs[i]);
  }
  const int64_t n_extra = static_cast<int64_t>(extra.size());
  int64_t* room = order_.room(2 * n_extra + n_negatives + 1);
  int64_t* begin = room + 2 * n_extra;  // of a negative's positions in `order`
  const int64_t* order = sort_positions(extra.data(), n_extra, n_items(), room, room + n_extra);
  const int64_t* negatives = items_.data() + m;
  const auto extra_row = [&](int64_t i) { return extra[order[i]]; };

  // Both rise: the rows that are no negatives stand between those that are.
  std::vector<int64_t> others;  // where each begins in `order`
  std::vector<int64_t> count(static_cast<size_t>(n_negatives));
  int64_t at = 0;
  const auto skip_to = [&](int64_t row) {
    for (; at < n_extra && extra_row(at) < row; ++at) {
      if (at == 0 || extra_row(at) != extra_row(at - 1)) others.push_back(at);
    }
  };
  for (int64_t d = 0; d < n_negatives; ++d) {
    skip_to(negatives[d]);
    begin[d] = at;
    while (at < n_extra && extra_row(at) == negatives[d]) ++at;
    count[d] = at - begin[d];
  }
  skip_to(n_items());

  multiply_by_blocks<T>(
      n_negatives, width, m, grad.from(0, m).transposed(), h, [&](int64_t first, int64_t rows, const T* block) {
        for (int64_t i = 0; i < rows; ++i) {
          const int64_t d = first + i, next = i + 1 < rows ? negatives[d + 1] : -1;
          update_row(weight_, negatives[d], block + i * width, extra_grad, order + begin[d], count[d], options, next);
        }
      });
  at::parallel_for(0, static_cast<int64_t>(others.size()), std::max<int64_t>(1, 8192 / width),
                   [&](int64_t from, int64_t to) {
                     for (int64_t i = from; i < to; ++i) {
                       int64_t end = others[i] + 1;
                       while (end < n_extra && extra_row(end) == extra_row(others[i])) ++end;
                       update_row<T, AdagradOptions>(weight_, extra_row(others[i]), nullptr, extra_grad,
                                                     order + others[i], end - others[i], options);
                     }
                   });
  T* sums = sums_.room(m + n_negatives);
  std::fill_n(sums, m + n_negatives, T{0});
  add_column_sums(grad_scores_, m, m + n_negatives, stride, sums);
  update_rows(bias_, items_.data(), m + n_negatives, sums, options);
}

template class RowGradients<float>;
template class RowGradients<double>;
template class OutputTable<float>;
template class OutputTable<double>;

}  // namespace grf
