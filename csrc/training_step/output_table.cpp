// The implementation of OutputTable (training_step/output_table.h).
#include "training_step/output_table.h"

#include <ATen/Parallel.h>

#include <algorithm>

#include "common/operator.h"
#include "common/rows.h"
#include "matrix/product.h"

namespace grf {

template <typename T>
T* RowGradients<T>::append(const int64_t* index, int64_t n, int64_t width) {
  const size_t start = grad_.size();
  index_.insert(index_.end(), index, index + n);
  grad_.resize(start + static_cast<size_t>(n * width));
  return grad_.data() + start;
}

template <typename T>
void RowGradients<T>::append_live(const int64_t* index, int64_t n, int64_t width, const T* grad) {
  for (int64_t i = 0; i < n; ++i) {
    if (index[i] >= 0) std::copy_n(grad + i * width, width, append(index + i, /*n=*/1, width));
  }
}

template <typename T>
void RowGradients<T>::scale(T factor) {
  for (T& value : grad_) value *= factor;
}

template <typename T>
void RowGradients<T>::add_to(const int64_t* rows, int64_t n, int64_t width, T* out) const {
  const int64_t* row = rows;
  for (size_t i = 0; i < index_.size(); ++i) {
    // Most gradients are of the row after the last one, since distinct negatives are sorted.
    const int64_t* next = row + 1 < rows + n && row[1] == index_[i] ? row + 1 : nullptr;
    row = next != nullptr ? next : std::lower_bound(rows, rows + n, index_[i]);
    const T* grad = grad_.data() + static_cast<int64_t>(i) * width;
    T* sum = out + (row - rows) * width;
    for (int64_t k = 0; k < width; ++k) sum[k] += grad[k];
  }
}

template <typename T>
void RowGradients<T>::assign(const int64_t* rows, int64_t n, int64_t width, const T* grad) {
  clear();
  std::copy_n(grad, n * width, append(rows, n, width));
}

template <typename T>
void RowGradients<T>::apply(const RowTable<T>& table, const AdagradOptions<T>& options) {
  update_rows(table, index_.data(), static_cast<int64_t>(index_.size()), grad_.data(), options, order_.data());
  clear();
}

template <typename T>
OutputTable<T>::OutputTable(const Parameter& weight, const Parameter& bias, const at::Tensor& log_support,
                            const ScoreOptions& options)
    : weight_(weight.rows<T>("output.weight")), bias_(bias.rows<T>("output.bias")), options_(options) {
  if (log_support.defined()) {
    log_support_ = contiguous(log_support, "log_support", {n_items()}, c10::CppTypeToScalarType<T>::value);
  }
}

// Selects the live lanes: their hidden states become the rows of scores, their targets the first columns.
template <typename T>
void OutputTable<T>::select_live(const T* hidden, const int64_t* targets, int64_t lanes) {
  live_.clear(), items_.clear();
  for (int64_t lane = 0; lane < lanes; ++lane) {
    if (targets[lane] < 0) continue;
    live_.push_back(lane);
    items_.push_back(targets[lane]);
  }
  problem_.m = static_cast<int64_t>(live_.size());
  problem_.hidden = hidden;
  if (problem_.m == lanes) return;
  T* live_hidden = live_hidden_.reserve(problem_.m * width());
  gather_rows(hidden, width(), live_.data(), problem_.m, live_hidden);
  problem_.hidden = live_hidden;
}

// Appends the targets of other processes' live lanes to the columns.
template <typename T>
void OutputTable<T>::select_others(const int64_t* other_targets, int64_t n_others) {
  counts_.clear();
  for (int64_t i = 0; i < n_others; ++i) {
    if (other_targets[i] < 0) continue;
    items_.push_back(other_targets[i]);
    counts_.push_back(1);
  }
}

// Appends the distinct negatives to the columns, and counts how often each was drawn.
template <typename T>
void OutputTable<T>::select_distinct(const int64_t* negatives, int64_t n) {
  int64_t* buffer = order_.reserve(2 * n);
  const int64_t* sorted = sort_rows(negatives, n, n_items(), buffer, buffer + n);
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

// Copies the rows and biases of the columns' items, and computes the logQ corrections.
template <typename T>
void OutputTable<T>::gather_columns(int64_t n_targets) {
  const int64_t columns = problem_.m + problem_.n;
  T *rows = rows_.reserve(columns * width()), *bias = bias_and_log_q_.reserve(2 * columns), *log_q = bias + columns;
  gather_rows(weight_.weight, width(), items_.data(), columns, rows);
  for (int64_t j = 0; j < columns; ++j) bias[j] = bias_.weight[items_[j]];
  problem_.rows = rows, problem_.bias = bias, problem_.log_q = nullptr;
  if (!log_support_.defined()) return;
  const T* log_support = log_support_.const_data_ptr<T>();
  const T logq = static_cast<T>(options_.logq), alpha = static_cast<T>(options_.sample_alpha);
  for (int64_t j = 0; j < columns; ++j) log_q[j] = logq * log_support[items_[j]] * (j < n_targets ? T{1} : alpha);
  problem_.log_q = log_q;
}

template <typename T>
void OutputTable<T>::prepare(const T* hidden, const int64_t* targets, int64_t lanes, const int64_t* other_targets,
                             int64_t n_others, const int64_t* negatives, int64_t n, double loss_scale) {
  select_live(hidden, targets, lanes);
  select_others(other_targets, n_others);
  const int64_t n_targets = static_cast<int64_t>(items_.size());
  select_distinct(negatives, n);
  problem_.width = width(), problem_.in_batch = true, problem_.precision = options_.precision;
  problem_.ids = options_.mask_accidental_hits ? items_.data() : nullptr;
  problem_.options = {options_.loss, static_cast<T>(options_.elu_param), static_cast<T>(options_.bpreg),
                      static_cast<T>(options_.label_smoothing), static_cast<T>(loss_scale / options_.batch_size)};
  gather_columns(n_targets);
  const int64_t stride = problem_.score_stride();
  score_columns_ = problem_.prepare_columns(columns_.reserve(2 * stride));
  tile_lanes_ = (problem_.m + n_tiles_ - 1) / n_tiles_;
  grad_scores_ = scores_.reserve(tile_lanes_ * stride);
  losses_.resize(static_cast<size_t>(problem_.m));
}

template <typename T>
void OutputTable<T>::score_lanes(int64_t first, int64_t count, T* grad_hidden) {
  T* scores = grad_scores_ + first % tile_lanes_ * problem_.score_stride();
  problem_.differentiate_rows(first, count, score_columns_, scores, losses_.data() + first);
  problem_.hidden_gradient(count, scores, grad_hidden + first * width());
}

template <typename T>
double OutputTable<T>::loss() const {
  double sum = 0;
  for (const T loss : losses_) sum += loss;
  return static_cast<T>(sum / options_.batch_size);
}

template <typename T>
double OutputTable<T>::score(const T* hidden, const int64_t* targets, int64_t lanes, const int64_t* other_targets,
                             int64_t n_others, const int64_t* negatives, int64_t n, double loss_scale, T* grad_hidden,
                             bool store) {
  prepare(hidden, targets, lanes, other_targets, n_others, negatives, n, loss_scale);
  const int64_t m = problem_.m, columns = m + problem_.n;
  if (m == 0) {  // only the lanes of other processes are live
    std::fill_n(grad_hidden, lanes * width(), T{0});
    return 0;
  }
  T* live_grad = m == lanes ? grad_hidden : live_grad_.reserve(m * width());
  T* grad_weight = store ? stored_weight_.append(items_.data(), columns, width()) : nullptr;
  T* grad_bias = store ? stored_bias_.append(items_.data(), columns, /*width=*/1) : nullptr;
  for (int64_t first = 0; first < m; first += tile_lanes_) {
    const int64_t count = std::min(tile_lanes_, m - first);
    score_lanes(first, count, live_grad);
    if (store) add_tile_gradient(first, count, grad_weight, grad_bias);
  }
  if (m == lanes) return loss();
  std::fill_n(grad_hidden, lanes * width(), T{0});
  for (int64_t i = 0; i < m; ++i) std::copy_n(live_grad + i * width(), width(), grad_hidden + live_[i] * width());
  return loss();
}

template <typename T>
void OutputTable<T>::add_tile_gradient(int64_t first, int64_t count, T* weight, T* bias) {
  const int64_t columns = problem_.m + problem_.n, stride = problem_.score_stride();
  const Matrix<T> grad{grad_scores_, stride}, h{problem_.hidden + first * width(), width()};
  multiply(columns, width(), count, grad.transposed(), h, weight, width(), /*add=*/first > 0, options_.precision);
  add_column_sums(grad_scores_, count, columns, stride, bias);
}

template <typename T>
void OutputTable<T>::scale_gradients(T factor) {
  stored_weight_.scale(factor);
  stored_bias_.scale(factor);
}

template <typename T>
void OutputTable<T>::apply_stored(const AdagradOptions<T>& options) {
  stored_weight_.apply(weight_, options);
  stored_bias_.apply(bias_, options);
}

// Collects the gradients of rows as targets and as inputs, and sorts their positions by row.
template <typename T>
void OutputTable<T>::collect_other_gradients(const int64_t* inputs, int64_t n, const T* grad_inputs) {
  const int64_t m = problem_.m, width = this->width();
  other_rows_.assign(items_.begin(), items_.begin() + m);
  other_grad_ = other_grad_buffer_.reserve((m + n) * width);
  const Matrix<T> grad{grad_scores_, problem_.score_stride()}, h{problem_.hidden, width};
  multiply(m, width, m, grad.transposed(), h, other_grad_, width, /*add=*/false, options_.precision);
  for (int64_t i = 0; i < n; ++i) {
    if (inputs[i] < 0) continue;
    std::copy_n(grad_inputs + i * width, width, other_grad_ + static_cast<int64_t>(other_rows_.size()) * width);
    other_rows_.push_back(inputs[i]);
  }
  const int64_t size = static_cast<int64_t>(other_rows_.size());
  int64_t* buffer = order_.reserve(2 * size);
  other_order_ = sort_positions(other_rows_.data(), size, n_items(), buffer, buffer + size);
}

// Groups the collected gradients by row, separately for the distinct negatives and for all other rows. Both the
// negatives and the sorted positions are in increasing order of rows, so one pass over both is enough.
template <typename T>
void OutputTable<T>::group_other_gradients() {
  const size_t size = other_rows_.size();
  size_t i = 0;
  const auto row = [&](size_t k) { return other_rows_[other_order_[k]]; };  // of the k-th gradient in sorted order
  const auto append_group = [&](Vector<OtherGradients>& groups, int64_t group_row) {
    const size_t begin = i;
    while (i < size && row(i) == group_row) ++i;
    groups.push_back({group_row, other_order_ + begin, static_cast<int64_t>(i - begin)});
  };
  for_negatives_.clear(), for_other_rows_.clear();
  for (int64_t d = 0; d < problem_.n; ++d) {
    const int64_t negative = items_[static_cast<size_t>(problem_.m + d)];
    while (i < size && row(i) < negative) append_group(for_other_rows_, row(i));
    append_group(for_negatives_, negative);
  }
  while (i < size) append_group(for_other_rows_, row(i));
}

template <typename T>
void OutputTable<T>::prepare_update(const int64_t* inputs, int64_t n, const T* grad_inputs) {
  collect_other_gradients(inputs, n, grad_inputs);
  group_other_gradients();
  const int64_t columns = problem_.m + problem_.n;
  bias_grad_ = bias_grad_buffer_.reserve(columns);
  std::fill_n(bias_grad_, columns, T{0});
  add_column_sums(grad_scores_, problem_.m, columns, problem_.score_stride(), bias_grad_);
}

template <typename T>
void OutputTable<T>::update(const AdagradOptions<T>& options) {
  const int64_t m = problem_.m, stride = problem_.score_stride(), width = this->width();
  // Updates an item's row and its bias. grad and grad_bias are the gradients of the item as a negative, or null.
  const auto update_item = [&](const OtherGradients& others, const T* grad, const T* grad_bias, int64_t next_row) {
    update_row(weight_, others.row, grad, other_grad_, others.positions, others.n, options, next_row);
    int64_t n_targets = 0;
    while (n_targets < others.n && others.positions[n_targets] < m) ++n_targets;
    if (grad_bias != nullptr || n_targets > 0) {
      update_row(bias_, others.row, grad_bias, bias_grad_, others.positions, n_targets, options);
    }
  };
  const auto update_negatives = [&](int64_t first, int64_t rows, const T* block) {
    for (int64_t i = 0; i < rows; ++i) {
      const int64_t d = first + i;
      update_item(for_negatives_[d], block + i * width, bias_grad_ + m + d,
                  i + 1 < rows ? for_negatives_[d + 1].row : -1);
    }
  };
  const Matrix<T> grad{grad_scores_, stride}, h{problem_.hidden, width};
  multiply_by_blocks<T>(problem_.n, width, m, grad.skip(0, m).transposed(), h, update_negatives, options_.precision);
  const int64_t n_others = static_cast<int64_t>(for_other_rows_.size());
  // Grain size: about 8192 elements. Fewer are not worth another thread.
  at::parallel_for(0, n_others, std::max<int64_t>(1, 8192 / width), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      update_item(for_other_rows_[i], /*grad=*/nullptr, /*grad_bias=*/nullptr,
                  i + 1 < end ? for_other_rows_[i + 1].row : -1);
    }
  });
}

template <typename T>
void OutputTable<T>::release_memory() {
  release(live_, items_, counts_, losses_, live_hidden_, rows_, bias_and_log_q_, columns_, scores_, live_grad_,
          other_grad_buffer_, bias_grad_buffer_, order_, other_rows_, for_negatives_, for_other_rows_, stored_weight_,
          stored_bias_);
}

template class RowGradients<float>;
template class RowGradients<double>;
template class OutputTable<float>;
template class OutputTable<double>;

}  // namespace grf
