// A GRU layer on raw pointers, and the functions that launch its CUDA kernels. Specification: gru4rec_fast/ops/gru.py,
// which uses the same names.
//
// A lane is one of the B sessions of a mini-batch. s is the previous state of a lane, zero if the lane is reset before
// the step; W the recurrent weights, W_rz their rows of the gates r and z, W_n those of n; q = W_n s + b_n in the
// reset_after form, r * s in the reset_before form.
#pragma once

#include <cstdint>

#include "common/stream.h"
#include "matrix/precision.h"

namespace grf {

// One layer over T steps of B lanes. The 3H gate units are in the order r, z, n.
template <typename T>
struct GruLayer {
  int64_t steps, lanes, hidden;
  bool reset_after;                       // true: the reset_after form; false: reset_before
  const T* state;                         // [B, H], the state before the first step
  const T* weight;                        // [3H, H]
  const T* bias;                          // [3H], or null
  const bool* reset;                      // [T, B], or null
  const T* mask;                          // [T, B, H], factors of the output, or null
  Precision precision = Precision::full;  // of the matrix products on the CPU
};

namespace cuda {

template <typename T>
struct GruForward {
  GruLayer<T> layer;
  const T* gate_inputs;  // [T, B, 3H]
  T* output;             // [T, B, H], written
  T* saved;              // [T, B, 4H], written: r, z, n, q
  // Matrix products of the current step, computed as if no lane were reset. reset_after: W s [B, 3H] and null;
  // reset_before: W_rz s [B, 2H] and W_n q [B, H].
  const T *product, *product_n;
};

template <typename T>
struct GruBackward {
  GruLayer<T> layer;
  const T *grad_output, *output, *saved;  // [T, B, H], [T, B, H], [T, B, 4H]
  T* grad_gate_inputs;                    // [T, B, 3H], written
  T* grad_recurrent;                      // [T, B, 3H], written: gradient of W s + b; null in the reset_before form
  T* prev_states;                         // [T, B, H], written: s of every step
  T* grad_state;    // [B, H]: gradient of the state between two steps; after step 0, that of `layer.state`
  const T* grad_q;  // [B, H]: gradient of q in the current step, reset_before
};

// Returns whether one launch processes all steps of a layer, which depends only on its shape: the weights must fit into
// a block's shared memory, and there must be few enough lanes for all blocks to run at once. Otherwise every step takes
// one launch after its matrix product, two in the reset_before form.
bool gru_runs_in_one_launch(int64_t lanes, int64_t hidden, int64_t element_bytes);

template <typename T>
void launch_gru_all_steps(const GruForward<T>& forward, cudaStream_t stream);
template <typename T>
void launch_gru_all_steps(const GruBackward<T>& backward, cudaStream_t stream);

// Launches step t, after its matrix product. The reset_before form takes a second launch, with `second`, after its
// second product.
template <typename T>
void launch_gru_step(const GruForward<T>& forward, int64_t t, bool second, cudaStream_t stream);
template <typename T>
void launch_gru_step(const GruBackward<T>& backward, int64_t t, bool second, cudaStream_t stream);

}  // namespace cuda
}  // namespace grf
