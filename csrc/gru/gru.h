// A GRU layer on raw pointers, and the functions that launch its CUDA kernels. Specification: gru4rec_fast/ops/gru.py,
// which uses the same names.
//
// Names in the comments of this folder:
//   lane  one of the B sessions that are processed in parallel
//   unit  one of the H elements of a lane's state
//   s     the state [H] of a lane before a step, zeros if the lane is reset before the step
//   W, b  the recurrent weights [3H, H] and bias [3H]; W_rz and W_n are the rows of W for the gates r and z, and for n
//   q     W_n s + b_n in the reset_after form, r * s in the reset_before form
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
  Precision precision = Precision::full;  // precision of matrix products on the CPU; ignored on CUDA

  // Returns steps [begin, end) as a layer. `output` [T, B, H] holds the outputs of all steps before `end`.
  GruLayer range(int64_t begin, int64_t end, const T* output) const {
    GruLayer part = *this;
    part.steps = end - begin;
    if (begin > 0) part.state = output + (begin - 1) * lanes * hidden;
    if (reset != nullptr) part.reset += begin * lanes;
    if (mask != nullptr) part.mask += begin * lanes * hidden;
    return part;
  }
};

namespace cuda {

// Parameters of the forward kernels.
template <typename T>
struct GruForward {
  GruLayer<T> layer;
  const T* gate_inputs;  // [T, B, 3H]
  T* output;             // [T, B, H], written
  T* saved;              // [T, B, 4H], written: r, z, n, q
  // Matrix products of the current step. reset_after: W s [B, 3H] and null; reset_before: W_rz s [B, 2H] and W_n q
  // [B, H]. `product` is computed from the states before the reset; kernels take 0 instead for reset lanes. `product_n`
  // is W_n q, and q is already 0 there.
  const T *product, *product_n;
};

// Parameters of the kernel of a single step (T = 1) in the reset_after form, from the layer's input to its output.
template <typename T>
struct GruOneStep {
  GruForward<T> forward;         // gate_inputs and the products are not used
  const T* x;                    // [B, input]
  const T *weight_ih, *bias_ih;  // [3H, input], [3H]
  int64_t input;
  // [B, scored_width], one of them written, or both null: the output, a column of ones, and zeros.
  T* scored;
  uint16_t* scored_bf16;
  int64_t scored_width;
  bool wide_input, wide_state;  // rows of x and weight_ih, of state and weight can be read 16 bytes at a time
};

// Parameters of the backward kernels.
template <typename T>
struct GruBackward {
  GruLayer<T> layer;
  const T *grad_output, *output, *saved;  // [T, B, H], [T, B, H], [T, B, 4H]
  T* grad_gate_inputs;                    // [T, B, 3H], written
  T* grad_recurrent;                      // [T, B, 3H], written: gradient of W s + b; null in the reset_before form
  T* prev_states;                         // [T, B, H], written: s of every step
  // [B, H]: gradient of the state between two steps; after all steps, gradient of layer.state. May be null if T = 1.
  T* grad_state;
  const T* grad_q;  // [B, H]: gradient of q in the current step; null in the reset_after form
};

// Returns whether launch_gru_all_steps can process a layer of this shape: the weights must fit into a block's shared
// memory, and there must not be so many lanes that per-step products are faster (by an estimate). Otherwise, the caller
// computes one matrix product and calls launch_gru_step for each step; the reset_before form takes two products and two
// calls.
bool gru_runs_in_one_launch(int64_t lanes, int64_t hidden, int64_t element_bytes);

// Launches one kernel that processes all steps.
template <typename T>
void launch_gru_all_steps(const GruForward<T>& forward, cudaStream_t stream);
template <typename T>
void launch_gru_all_steps(const GruBackward<T>& backward, cudaStream_t stream);

// Launches a kernel of step t; the caller computes the matrix products between the launches. The reset_before form has
// two kernels per step, and second_launch selects the second one.
template <typename T>
void launch_gru_step(const GruForward<T>& forward, int64_t t, bool second_launch, cudaStream_t stream);
template <typename T>
void launch_gru_step(const GruBackward<T>& backward, int64_t t, bool second_launch, cudaStream_t stream);

// Launches the kernel of a single step. Sets step.wide_input and step.wide_state.
template <typename T>
void launch_gru_one_step(GruOneStep<T> step, cudaStream_t stream);

}  // namespace cuda
}  // namespace grf
