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
// output rows and biases of its items. Each step has `columns` items, first the targets of `lanes` lanes, then
// negatives.
template <typename T>
struct StepGather {
  GatheredRows<T> inputs, items;
  const T* bias;           // [items.n_rows]
  const T* log_support;    // [items.n_rows], log of an item's number of occurrences in the training log, or null
  T logq, logq_negatives;  // strength of the logQ correction for targets and for negatives
  int64_t columns, lanes;
  T *biases, *log_q;  // [items.n], written
};

// Arguments of step_store_losses_, which stores the losses of a block and decides whether to update the weights.
template <typename T>
struct StepStoreLosses {
  const T* losses;     // [steps]
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

// Arguments of step_rows_, which updates the touched rows of a table and their biases if `enabled` is true. Row
// positions[i] of the concatenation of grad_inputs and grad_items is a gradient of row rows[i]. Only items have a
// gradient of the bias.
template <typename T>
struct StepRows {
  const int64_t *rows, *positions;  // [n]; `rows` is sorted and may contain a row several times; -1 is skipped
  int64_t n, n_rows, width;
  int64_t n_inputs;
  const T *grad_inputs, *grad_items, *grad_bias;  // [n_inputs, width], [n - n_inputs, width], [n - n_inputs]
  T *weight, *accumulator, *velocity;             // [n_rows, width], updated; the velocity may be null
  T *bias, *bias_accumulator, *bias_velocity;     // [n_rows], updated, or null
  const bool* enabled;
  const double* hyperparameters;  // [3]: learning rate, momentum, epsilon
};

template <typename T>
void step_gather(const StepGather<T>& gather, cudaStream_t stream);
template <typename T>
void step_store_losses_(const StepStoreLosses<T>& block_losses, cudaStream_t stream);
template <typename T>
void step_apply_(const StepApply<T>& update, cudaStream_t stream);
template <typename T>
void step_rows_(const StepRows<T>& update, cudaStream_t stream);

}  // namespace grf::cuda
