// The GRU on the CPU, on raw pointers, for the operators of gru/gru.cpp and the fused training step.
//
// Names in the comments, as in gru/gru.h:
//   lane     one of the B sessions that are processed in parallel
//   s        the state [H] of a lane before a step, zeros if the lane is reset before the step
//   W, W_rz  the recurrent weights [3H, H], and their rows for the gates r and z
#pragma once

#include "gru/gru.h"
#include "matrix/product.h"

namespace grf {

// The gradients that gru_backward_lanes writes:
//   gate_inputs  gradient of the gate inputs [T, B, 3H]
//   recurrent    reset_after form: gradient of W s [T, B, 3H]; reset_before form: gradient of W_rz s [T, B, 2H]
//   state        gradient of the state before the first step [B, H], or null to skip it. At T = 1, skipping it saves a
//                third of the matrix products.
// gru_backward_lanes reads next_state [B, H]: what steps after the T steps add to the gradient of the final state. Null
// means zeros. It may be the same array as `state`.
template <typename T>
struct GruLaneGradients {
  T *gate_inputs, *recurrent, *state;
  const T* next_state = nullptr;
};

// The gradients that gru_backward_weights computes: weight [3H, H] and bias [3H]. If `add`, they are added to these
// arrays; otherwise they overwrite the arrays. If weight_callback is not null, T must be 1 and `weight` is ignored.
// Then the callback receives each block of rows of the weight's gradient once the block is computed. The callback may
// use the block to update the layer's weight.
template <typename T>
struct GruWeightGradients {
  T *weight, *bias;
  bool add = false;
  const OnBlock<T>* weight_callback = nullptr;
};

// Computes output [T, B, H] from gate_inputs [T, B, 3H]. Also writes saved [T, B, 4H] for the backward pass: r, z, n
// and q, where q is W_n s + b_n in the reset_after form and r * s in the reset_before form. T, B and H are positive, as
// in all functions of this file.
template <typename T>
void gru_forward(const GruLayer<T>& layer, const T* gate_inputs, T* output, T* saved);

// First half of the backward pass: computes the gradients of each lane. Lanes are independent of each other, as in
// gru_forward. At T = 1, gru_forward and gru_backward_lanes may therefore be called for a range of lanes at a time.
template <typename T>
void gru_backward_lanes(const GruLayer<T>& layer, const T* grad_output, const T* output, const T* saved,
                        const GruLaneGradients<T>& grads);

// Second half of the backward pass: computes the gradients of weight and bias, which are sums over all steps and lanes.
template <typename T>
void gru_backward_weights(const GruLayer<T>& layer, const T* output, const T* saved, const T* grad_gate_inputs,
                          const T* grad_recurrent, const GruWeightGradients<T>& grads);

}  // namespace grf
