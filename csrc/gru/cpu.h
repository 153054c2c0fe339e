// The GRU on the CPU, on raw pointers, for the operators of gru/gru.cpp and the fused training step. gru/gru.h explains
// s, W_rz and q.
#pragma once

#include "gru/gru.h"
#include "matrix/product.h"

namespace grf {

// The gradients that gru_backward_lanes writes:
//   gate_inputs  [T, B, 3H]
//   recurrent    of W s [T, B, 3H]; of W_rz s [T, B, 2H] in the reset_before form
//   state        of the first state [B, H]; null skips it, which at T = 1 saves a third of the matrix products
template <typename T>
struct GruLaneGradients {
  T *gate_inputs, *recurrent, *state;
};

// The gradients that gru_backward_weights writes or, with `add`, adds to: weight [3H, H] and bias [3H]. At T = 1
// `use_weight` may be given; `weight` is then ignored, and the callback receives the weight's gradient in blocks of
// rows as they are computed. It may update the layer's weight, which is not read any more.
template <typename T>
struct GruWeightGradients {
  T *weight, *bias;
  bool add = false;
  const UseBlock<T>* use_weight = nullptr;
};

// Computes output [T, B, H] and saved [T, B, 4H] from gate_inputs [T, B, 3H].
template <typename T>
void gru_forward(const GruLayer<T>& layer, const T* gate_inputs, T* output, T* saved);

// Backward has two halves. The first computes the gradients of each lane, independent of other lanes like forward. At
// T = 1 both may therefore be called for some of a layer's lanes at a time.
template <typename T>
void gru_backward_lanes(const GruLayer<T>& layer, const T* grad_output, const T* output, const T* saved,
                        const GruLaneGradients<T>& grads);

// The second half computes the gradients of the weights, which sum over all steps and lanes.
template <typename T>
void gru_backward_weights(const GruLayer<T>& layer, const T* output, const T* saved, const T* grad_gate_inputs,
                          const T* grad_recurrent, const GruWeightGradients<T>& grads);

}  // namespace grf
