// Launchers of what a training step does between its products and kernels. Specification:
// gru4rec_fast/ops/training_step.py, whose names these are.
#pragma once

#include <cstdint>

#include "common/stream.h"

namespace grf::cuda {

// Rows of a table at [n] indices; of an index of -1, zeros.
template <typename T>
struct GatheredRows {
  const T* table;  // [n_rows, width]
  int64_t n_rows, width;
  const int64_t* index;  // [n]
  int64_t n;
  const T* mask;    // [n, width], multiplied, or null
  T* rows;          // [n, width], written; or
  uint16_t* as_16;  // the same rounded to bfloat16
};

// What a block takes from the tables. Its items are `columns` of each step, `lanes` targets first.
template <typename T>
struct StepGather {
  GatheredRows<T> inputs, items;
  const T *bias, *log_support;  // [items.n_rows]; log_support may be null
  T logq, logq_negatives;       // strength of the correction, of targets and of negatives
  int64_t columns, lanes;
  T *biases, *log_q;  // [items.n], written
};

template <typename T>
struct StepSettle {
  const T* losses;     // [steps]
  const bool* played;  // [steps]
  int64_t steps;
  bool* stopped;  // [], updated
  T* kept;        // [steps], written
  bool* moves;    // [], written
};

// A weight, whose gradient moves it; or, without an accumulator, a state that becomes its `grad`.
template <typename T>
struct WholeTensor {
  T *weight, *accumulator, *velocity;
  const T* grad;
  int64_t end;  // how many numbers it and those before it have
};

constexpr int kWholeTensors = 16;  // of a launch

template <typename T>
struct StepApply {
  WholeTensor<T> of[kWholeTensors];
  int n;
  const bool* moves;
  const double* numbers;  // learning rate, momentum, epsilon
};

template <typename T>
struct StepRows {
  const int64_t *rows, *positions;  // [n]: rising, -1 names none; and of each its place among the gradients
  int64_t n, n_rows, width;
  int64_t n_inputs;                               // of the gradients are in grad_inputs, the others in the rest
  const T *grad_inputs, *grad_items, *grad_bias;  // [n_inputs, width], [n - n_inputs, width], [n - n_inputs]
  T *weight, *accumulator, *velocity;             // [n_rows, width], updated; the velocity may be null
  T *bias, *bias_accumulator, *bias_velocity;     // [n_rows], or null
  const bool* moves;
  const double* numbers;
};

template <typename T>
void step_gather(const StepGather<T>& gather, cudaStream_t stream);
template <typename T>
void step_settle_(const StepSettle<T>& block, cudaStream_t stream);
template <typename T>
void step_apply_(const StepApply<T>& tensors, cudaStream_t stream);
template <typename T>
void step_rows_(const StepRows<T>& touched, cudaStream_t stream);

}  // namespace grf::cuda
