// The arguments of the training step's CUDA kernels, and the functions that launch them. Specification:
// gru4rec_fast/ops/training_step.py.
//
// A block is T steps of all lanes. A lane is one of the sessions processed in parallel; a dead lane has no session
// left, a live lane has one. The items of a step are its lanes' targets and its negatives. `enabled` and
// `hyperparameters` are on the device, so that a captured CUDA graph reads their current values.
#pragma once

#include <cstdint>

#include "common/stream.h"

namespace grf::cuda {

// Arguments for copying rows of a table. An index of -1 gives a row of zeros.
template <typename T>
struct GatheredRows {
  const T* table;  // [n_rows, width]
  int64_t n_rows, width;
  const int64_t* index;  // [n]
  int64_t n;
  const T* mask;        // [n, width], factors of the copied rows, or null
  T* rows;              // [n, width], written if bf16_rows is null
  uint16_t* bf16_rows;  // [n, width], the rows rounded to bfloat16, written unless null
};

// Arguments of step_gather, which copies what a block reads from the tables: the embeddings of its inputs, and the
// output rows and score offsets of its items. Each step has `columns` items, first the targets of `lanes` lanes, then
// negatives.
template <typename T>
struct StepGather {
  GatheredRows<T> inputs, items;
  const T* bias;           // [items.n_rows]
  const T* log_support;    // [items.n_rows], log of an item's number of occurrences in the training log, or null
  T logq, logq_negatives;  // strength of the logQ correction for targets and for negatives
  int64_t columns, lanes;
  T* offsets;  // [items.n], written: bias minus logQ correction, or -inf for an index of -1
};

// Arguments of step_store_losses_, which sums the losses of a block by step and decides whether to update the weights.
template <typename T>
struct StepStoreLosses {
  const T* losses;  // [steps, lanes]
  int64_t lanes;
  const bool* active;  // [steps], false for steps with fewer live lanes than the loader's min_live
  int64_t steps;
  bool* stopped;   // [], updated: true once a loss was infinite or NaN
  T* step_losses;  // [steps], written: the losses, 0 for inactive steps
  bool* enabled;   // [], written: whether to update the weights
};

// A weight to update by its gradient `grad`. If the accumulator is null: a hidden state to overwrite with `grad`.
template <typename T>
struct DenseUpdate {
  T *weight, *accumulator, *velocity;
  const T* grad;
  int64_t end;  // number of elements of this tensor and of all preceding tensors of the launch
};

constexpr int kMaxTensors = 16;  // the number of tensors that one launch can update

// Arguments of step_apply_, which updates whole tensors if `enabled` is true.
template <typename T>
struct StepApply {
  DenseUpdate<T> tensors[kMaxTensors];
  int n;
  const bool* enabled;
  const double* hyperparameters;  // [3]: learning rate, momentum, epsilon
};

// A weight to update by its gradient left^T right. If the accumulator is null: a hidden state to overwrite with `left`.
template <typename T>
struct GradientProduct {
  T *weight, *accumulator, *velocity;  // [rows, columns]
  const T *left, *right;  // [depth, rows] and [depth, columns]; null: a column of ones. The new state: [rows, columns].
  int64_t rows, columns;
  int64_t end_tile;  // number of tiles of this weight and of all preceding weights of the launch
};

// Arguments of step_products_, which computes gradients and updates their weights if `enabled` is true.
template <typename T>
struct StepProducts {
  GradientProduct<T> products[kMaxTensors];
  int n;
  int64_t depth;
  const bool* enabled;
  const double* hyperparameters;  // [3]: learning rate, momentum, epsilon
};

// Arguments of step_rows_, which updates the touched rows of a table and their biases if `enabled` is true. Row
// positions[i] of the concatenation of grad_inputs and grad_items is a gradient of row rows[i]. Only items have a
// gradient of the bias: column `width` of grad_items.
template <typename T>
struct StepRows {
  const int64_t *rows, *positions;  // [n]; `rows` is sorted and may contain a row several times; -1 is skipped
  int64_t n, n_rows, width;
  int64_t n_inputs, item_width;
  const T *grad_inputs, *mask, *grad_items;    // [n_inputs, width] twice, [n - n_inputs, item_width]; mask: or null
  T *weight, *accumulator, *velocity;          // [n_rows, width], updated; the velocity may be null
  T *bias, *bias_accumulator, *bias_velocity;  // [n_rows], updated, or null
  const bool* enabled;
  const double* hyperparameters;  // [3]: learning rate, momentum, epsilon
};

template <typename T>
void step_gather(const StepGather<T>& gather, cudaStream_t stream);
template <typename T>
void step_store_losses_(const StepStoreLosses<T>& block_losses, cudaStream_t stream);
template <typename T>
void step_apply_(const StepApply<T>& update, cudaStream_t stream);
// Returns the number of tiles of a weight [rows, columns], for GradientProduct::end_tile.
int64_t step_product_tiles(int64_t rows, int64_t columns);
template <typename T>
void step_products_(const StepProducts<T>& update, cudaStream_t stream);
template <typename T>
void step_rows_(const StepRows<T>& update, cudaStream_t stream);

}  // namespace grf::cuda
