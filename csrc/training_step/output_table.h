// The output table of a network, for the fused training step: one row and one bias per item. A score is the product of
// a hidden state and an item's row, plus the item's bias. OutputTable computes the scores, the loss and the gradients
// of one step, and updates the table. It calls the functions of sampled_loss/cpu.h, matrix/product.h and
// sparse_update/cpu.h. Specification: gru4rec_fast/nn/sampled_loss.py.
#pragma once

#include <cstdint>

#include "common/scratch.h"
#include "sampled_loss/cpu.h"
#include "training_step/parameter.h"

namespace grf {

// Gradients of rows of a table, collected until the table is updated. A row may have several gradients.
template <typename T>
class RowGradients {
 public:
  // Appends n gradients, of the rows index [n]. Returns memory [n, width] that the caller writes the gradients to.
  T* append(const int64_t* index, int64_t n, int64_t width);

  // Appends the gradients grad [n, width] of the rows index [n], except where an index is negative (dead lanes).
  void append_live(const int64_t* index, int64_t n, int64_t width, const T* grad);

  void scale(T factor);

  // Adds the gradients to out [n, width], of the rows `rows` [n], which must be sorted and include every row here.
  void add_to(const int64_t* rows, int64_t n, int64_t width, T* out) const;

  // Replaces the gradients by grad [n, width], of the rows `rows` [n].
  void assign(const int64_t* rows, int64_t n, int64_t width, const T* grad);

  void clear() {
    index_.clear();
    grad_.clear();
  }

  // Allocates what `apply` needs, so that `apply` allocates nothing. The memory grows only when that of the gradients
  // has grown.
  void reserve_for_apply() { order_.reserve(sort_memory(static_cast<int64_t>(index_.capacity()))); }

  // Updates each row by the sum of its gradients, then clears the gradients.
  void apply(const RowTable<T>& table, const AdagradOptions<T>& options);

 private:
  Vector<int64_t> index_;
  Vector<T> grad_;
  Buffer<int64_t> order_;
};

// The options of the loss, named as in nn/sampled_loss.py.
struct ScoreOptions {
  RankingLoss loss;
  double batch_size, elu_param, bpreg, label_smoothing, logq, sample_alpha;
  bool mask_accidental_hits;
  Precision precision;  // of the matrix products
};

template <typename T>
class OutputTable {
 public:
  // log_support [n_items]: log of each item's number of occurrences in the training log; may be undefined if logq is 0.
  // The tensors must outlive this object.
  OutputTable(const Parameter& weight, const Parameter& bias, const at::Tensor& log_support,
              const ScoreOptions& options);

  int64_t n_items() const { return weight_.n_rows; }
  int64_t width() const { return weight_.width; }
  Precision precision() const { return options_.precision; }
  const RowTable<T>& weight() const { return weight_; }

  // Lets `score` compute the scores of ceil(m / n_tiles) of the m live lanes at a time, which needs memory for these
  // lanes only. With several tiles, `score` must be called with `store`.
  void set_tiles(int64_t n_tiles) { n_tiles_ = n_tiles; }

  // Scores one step: hidden [B, H] against targets [B] (-1 in dead lanes, which have no session left), the targets of
  // the lanes of other processes [n_others] (-1 in dead lanes), which are negatives, and negatives [n]. Returns the
  // loss, summed over live lanes and divided by batch_size. Computes grad_hidden [B, H], the gradient of the loss times
  // `loss_scale`. With `store`, also computes the gradients of the table and stores them until apply_stored. Without
  // `store`, the caller must not change the arguments until it has called `update`.
  double score(const T* hidden, const int64_t* targets, int64_t lanes, const int64_t* other_targets, int64_t n_others,
               const int64_t* negatives, int64_t n, double loss_scale, T* grad_hidden, bool store);

  // These three functions together do the same as `score` with one tile and without `store`, for steps without dead
  // lanes and without other processes: call `prepare`, score_lanes for all lanes, then `loss`. Several threads may call
  // score_lanes for different lanes.
  void prepare(const T* hidden, const int64_t* targets, int64_t lanes, const int64_t* negatives, int64_t n,
               double loss_scale) {
    prepare(hidden, targets, lanes, /*other_targets=*/nullptr, /*n_others=*/0, negatives, n, loss_scale);
  }
  void score_lanes(int64_t first, int64_t count, T* grad_hidden);
  double loss() const;

  // If the table also embeds the inputs: stores the gradients grad [n, H] of the inputs [n] until apply_stored.
  void store_input_gradient(const int64_t* inputs, int64_t n, const T* grad) {
    stored_weight_.append_live(inputs, n, width(), grad);
  }

  void scale_gradients(T factor);
  void clear_gradients() {
    stored_weight_.clear();
    stored_bias_.clear();
  }

  // Allocates what apply_stored needs, so that apply_stored allocates nothing.
  void reserve_for_apply() {
    stored_weight_.reserve_for_apply();
    stored_bias_.reserve_for_apply();
  }

  // Updates the table by the stored gradients, then clears them.
  void apply_stored(const AdagradOptions<T>& options);

  // For an update from one step, first half: collects the gradients of the targets' rows, of the rows of `inputs` [n],
  // and of the biases.
  void prepare_update(const int64_t* inputs, int64_t n, const T* grad_inputs);

  // For an update from one step, second half: updates the table without storing its gradients. The row of each distinct
  // negative is updated as soon as its gradient as a negative is computed, together with the gradients that
  // prepare_update has collected. After that, the rows that are not negatives are updated. The only allocations are
  // small ones inside the matrix product.
  void update(const AdagradOptions<T>& options);

  // The stored gradients of the rows and of the biases.
  RowGradients<T>& stored_weight() { return stored_weight_; }
  RowGradients<T>& stored_bias() { return stored_bias_; }

  // Frees the memory that the functions have allocated, and the stored gradients.
  void release_memory();

 private:
  // The gradients of a row as a target and as an input, but not as a negative: rows positions[0 .. n) of other_grad_.
  struct OtherGradients {
    int64_t row;
    const int64_t* positions;
    int64_t n;
  };

  void collect_other_gradients(const int64_t* inputs, int64_t n, const T* grad_inputs);
  void group_other_gradients();
  // Stores the gradients of the table from a tile: the live lanes [first, first + count), whose gradients of the scores
  // are at the beginning of scores_. `weight` and `bias` are the stored gradients of the step.
  void add_tile_gradient(int64_t first, int64_t count, T* weight, T* bias);
  void prepare(const T* hidden, const int64_t* targets, int64_t lanes, const int64_t* other_targets, int64_t n_others,
               const int64_t* negatives, int64_t n, double loss_scale);
  void select_live(const T* hidden, const int64_t* targets, int64_t lanes);
  void select_others(const int64_t* other_targets, int64_t n_others);
  void select_distinct(const int64_t* negatives, int64_t n);
  void gather_columns(int64_t n_targets);

  RowTable<T> weight_, bias_;
  at::Tensor log_support_;  // undefined without the logQ correction
  ScoreOptions options_;
  int64_t n_tiles_ = 1;

  // The live lanes of the last step, and the items of the columns of scores: the targets of the live lanes, those of
  // the lanes of other processes, then the distinct negatives in increasing order.
  Vector<int64_t> live_, items_;
  // How often each negative counts: 1 for a target, and how often a distinct negative was drawn. The losses of the live
  // lanes.
  Vector<T> counts_, losses_;
  SampledLoss<T> problem_{};
  ScoreColumns<T> score_columns_{};
  T* grad_scores_ = nullptr;
  int64_t tile_lanes_ = 0;  // the number of live lanes for which grad_scores_ has rows
  Buffer<T> live_hidden_, rows_, bias_and_log_q_, columns_, scores_, live_grad_, other_grad_buffer_, bias_grad_buffer_;
  Buffer<int64_t> order_;

  // Used by `update`: gradients of rows as targets and as inputs.
  Vector<int64_t> other_rows_;                      // the row of each gradient
  T *other_grad_ = nullptr, *bias_grad_ = nullptr;  // the gradients of rows, and of the biases of all columns
  const int64_t* other_order_ = nullptr;            // positions in other_rows_, sorted by row
  Vector<OtherGradients> for_negatives_;            // for each distinct negative; n may be 0
  Vector<OtherGradients> for_other_rows_;           // for each other row that is not a negative

  RowGradients<T> stored_weight_, stored_bias_;
};

}  // namespace grf
