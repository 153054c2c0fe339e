// The GRU on the CPU, on raw pointers: what the operators of gru/gru.cpp and the fused training step run.
#pragma once

#include "gru/gru.h"
#include "matrix/product.h"

namespace grf {

// What the lanes' half of backward writes: gradients of the gate inputs [T, B, 3H]; of W s, the product of weight and
// state, [T, B, 3H] ([T, B, 2H] of W_rz s in the reset_before form); of the state [B, H], which may be null where
// nobody wants it, and at T = 1 is a third of the products.
template <typename T>
struct GruLaneGradients {
  T *gate_inputs, *recurrent, *state;
};

// What the weights' half writes, from the first two of those: weight [3H, H] and bias [3H], written or, with `add`,
// added to. At T = 1 `use_weight` may take the weight's gradient in rows, as they leave the product and with the weight
// not read any more, in the place of `weight`, which may then be null.
template <typename T>
struct GruWeightGradients {
  T *weight, *bias;
  bool add = false;
  const UseBlock<T>* use_weight = nullptr;
};

// output [T, B, H] and saved [T, B, 4H] from gate_inputs [T, B, 3H].
template <typename T>
void gru_forward(const GruLayer<T>& layer, const T* gate_inputs, T* output, T* saved);

// Backward in two halves. The first, as forward, takes each lane by itself: at T = 1 a part of the lanes is a layer
// too.
template <typename T>
void gru_backward_lanes(const GruLayer<T>& layer, const T* grad_output, const T* output, const T* saved,
                        const GruLaneGradients<T>& grads);

template <typename T>
void gru_backward_weights(const GruLayer<T>& layer, const T* output, const T* saved, const T* grad_gate_inputs,
                          const T* grad_recurrent, const GruWeightGradients<T>& grads);

}  // namespace grf
