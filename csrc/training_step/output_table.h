// The output table of a network: what hidden states are scored with. One step's scores, loss and gradients, and the
// table's update; sequences the functions of sampled_loss/cpu.h, matrix/product.h and sparse_update/cpu.h.
// Specification: gru4rec_fast/nn/sampled_loss.py.
#pragma once

#include <cstdint>
#include <vector>

#include "common/scratch.h"
#include "sampled_loss/cpu.h"
#include "training_step/parameter.h"

namespace grf {

// Gradients of some rows of a table, gathered until the table is updated. A row may be there several times.
template <typename T>
class RowGradients {
 public:
  // Room for the gradients [n, width] of the rows named by index [n], behind what is there.
  T* append(const int64_t* index, int64_t n, int64_t width);

  // The same of the rows whose index is not negative, from grad [n, width].
  void append_live(const int64_t* index, int64_t n, int64_t width, const T* grad);

  void scale(T factor);

  void forget() {
    index_.clear();
    grad_.clear();
  }

  // Moves the rows, and forgets their gradients.
  void apply(const RowTable<T>& table, const AdagradOptions<T>& options);

 private:
  std::vector<int64_t> index_;
  std::vector<T> grad_;
};

// How a step is scored; names as in nn/sampled_loss.py.
struct ScoreOptions {
  RankingLoss loss;
  double batch_size, elu_param, bpreg, label_smoothing, logq, sample_alpha;
  bool mask_accidental_hits;
  Precision precision;  // of the products
};

template <typename T>
class OutputTable {
 public:
  // log_support [n_items]: log of the items' occurrences in the training log; may be undefined where logq is 0. The
  // tensors are to outlive this.
  OutputTable(const Parameter& weight, const Parameter& bias, const at::Tensor& log_support,
              const ScoreOptions& options);

  int64_t n_items() const { return weight_.n_rows; }
  int64_t width() const { return weight_.width; }
  Precision precision() const { return options_.precision; }
  const RowTable<T>& weight() const { return weight_; }

  // The loss of one step: hidden [B, H] against targets [B] (-1: a dead lane) and negatives [n], summed over live lanes
  // and divided by batch_size; grad_hidden [B, H] is its gradient times `share`. All stay as they are until the table's
  // gradient is taken, by one of the two functions below.
  double score(const T* hidden, const int64_t* targets, int64_t lanes, const int64_t* negatives, int64_t n,
               double share, T* grad_hidden);

  // The same in three parts, where every lane is live: `score_lanes` may run in different threads for different lanes.
  void begin(const T* hidden, const int64_t* targets, int64_t lanes, const int64_t* negatives, int64_t n, double share);
  void score_lanes(int64_t first, int64_t count, T* grad_hidden);
  double loss() const;

  // Puts the last step's gradients to those that `apply` is to use; for updates from several steps.
  void keep_gradient();

  // Gradients [n, H] of rows that are inputs too, to go the same way.
  void keep_input_gradient(const int64_t* inputs, int64_t n, const T* grad) {
    kept_weight_.append_live(inputs, n, width(), grad);
  }

  void scale_gradients(T factor);
  void forget_gradients() {
    kept_weight_.forget();
    kept_bias_.forget();
  }

  void apply(const AdagradOptions<T>& options);

  // For an update from the last step alone: no table of gradients is made. A distinct negative's row moves as soon as
  // its gradient leaves the product, with what it gets as a target and as an input [n]; rows that are no negatives
  // follow.
  void update(const int64_t* inputs, int64_t n, const T* grad_inputs, const AdagradOptions<T>& options);

 private:
  // What a row gets besides as a negative: the rows position[0 .. n) of extra_grad_.
  struct Extra {
    int64_t row;
    const int64_t* position;
    int64_t n;
  };

  void take_extra(const int64_t* inputs, int64_t n, const T* grad_inputs);
  void match_extra();
  void take_live(const T* hidden, const int64_t* targets, int64_t lanes);
  void take_distinct(const int64_t* negatives, int64_t n);
  void gather_columns();

  RowTable<T> weight_, bias_;
  at::Tensor log_support_;  // undefined where nothing is corrected
  ScoreOptions options_;

  // The last step: m live lanes; the items of its columns, m targets and then the distinct negatives in rising order.
  std::vector<int64_t> live_, items_;
  std::vector<T> counts_, losses_;
  SampledLoss<T> problem_{};
  ScoreColumns<T> prepared_{};
  T* grad_scores_ = nullptr;
  Buffer<T> live_hidden_, rows_, bias_and_log_q_, columns_, scores_, live_grad_, extra_room_, sums_;
  Buffer<int64_t> order_;

  // Of the update in the making.
  std::vector<int64_t> extra_;
  T* extra_grad_ = nullptr;
  const int64_t* extra_order_ = nullptr;
  std::vector<Extra> of_negatives_, of_others_;

  RowGradients<T> kept_weight_, kept_bias_;
};

}  // namespace grf
