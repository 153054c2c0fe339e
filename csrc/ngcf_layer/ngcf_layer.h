// The NGCF layer on raw pointers: the CPU's functions, and the launchers of the CUDA kernels. Specification:
// gru4rec_fast/ops/ngcf_layer.py.
//
// E' = act(inputs W + b), where inputs [n_rows, 2 n_in] is the matrix [P E, Q E * E] and W is W1 on top of W2. With
// `per_term`, the two terms P E W1 + b1 and (Q E * E) W2 + b2 are activated separately and then added.
#pragma once

#include <cstdint>

#include "common/stream.h"

namespace grf {

// Flags of a unit (one element of E'), which the forward pass saves for the backward pass. Without per_term,
// kFirstPositive refers to the one sum.
constexpr int kFirstPositive = 1, kSecondPositive = 2;  // the sum of the first, or of the second, term is positive
constexpr int kKept = 4;                                // message dropout keeps the unit

// What the inputs are computed from.
template <typename T>
struct NgcfRows {
  int64_t n_rows, n_in;
  const T* features;          // [n_columns, n_in]
  const int64_t* self_index;  // [n_rows]: the row in `features` of each row's own node; null: in order
  // [n_rows, n_in]: features multiplied by the matrices of P and of Q without "+I"; equal pointers where these agree
  const T *propagated_p, *propagated_q;
  bool p_adds_identity, q_adds_identity;

  constexpr const T* self_row(int64_t row) const { return features + (self_index ? self_index[row] : row) * n_in; }
};

// Activation and scale of the units.
template <typename T>
struct NgcfUnits {
  int64_t n_rows, n_out;
  T slope, keep_scale;  // of LeakyReLU; 1 / (1 - message_dropout)
};

// Random numbers of message dropout.
struct MessageDropout {
  uint32_t drop_threshold;  // a unit is kept where its Philox word is at least this; 0: no dropout
  uint32_t stream, step;
  uint64_t seed;
  const int64_t* nodes;  // [n_rows] node of each row; null: in order
};

template <typename T>
struct NgcfLayer {
  NgcfRows<T> rows;
  NgcfUnits<T> units;
  MessageDropout dropout;
};

// Gradients that the backward pass writes.
template <typename T>
struct NgcfGradients {
  T *propagated_p, *propagated_q;  // [n_rows, n_in]; q null: P and Q have one matrix, whose gradient is propagated_p
  T* self_features;                // [n_rows, n_in]
  T *weights, *bias_1, *bias_2;    // [2 n_in, n_out], [n_out], [n_out]
};

// Forward pass on the CPU. weights [2 n_in, n_out]: W1 on top of W2. bias [n_out]: the sum of both biases; with
// per_term [2, n_out]. Writes out and flags [n_rows, n_out].
template <typename T>
void ngcf_forward(const NgcfLayer<T>& layer, const T* weights, const T* bias, bool per_term, T* out, uint8_t* flags);

// Backward pass on the CPU. transposed_weights [n_out, 2 n_in]: [W1^T, W2^T].
template <typename T>
void ngcf_backward(const NgcfLayer<T>& layer, const T* transposed_weights, bool per_term, const T* grad_out,
                   const uint8_t* flags, const NgcfGradients<T>& grads);

namespace cuda {

// Operands of the activation; all but the biases [n_rows, n_out].
template <typename T>
struct ActivationOperands {
  const T *bias_1, *bias_2;  // [n_out]
  const T* product_2;        // (Q E * E) W2; null: already added to `out`
  T* out;                    // P E W1, overwritten by E'
  uint8_t* flags;            // written
};

// Writes the index of each rows[i] among the columns, which increase, to indices[i].
void find_rows(const int64_t* rows, int64_t n_rows, const int64_t* columns, int64_t n_columns, int64_t* indices,
               cudaStream_t stream);

// Writes inputs [n_rows, 2 n_in].
template <typename T>
void make_inputs(const NgcfRows<T>& rows, T* inputs, cudaStream_t stream);

// Adds the biases, applies the activation and message dropout.
template <typename T>
void activate(const NgcfUnits<T>& units, const MessageDropout& dropout, const ActivationOperands<T>& operands,
              cudaStream_t stream);

// Writes the gradients of the terms' sums before the activation from the gradient of E'. grad_sum_2 null: there is one
// sum. All [n_rows, n_out].
template <typename T>
void activate_backward(const NgcfUnits<T>& units, const T* grad_out, const uint8_t* flags, T* grad_sum_1, T* grad_sum_2,
                       cudaStream_t stream);

// Writes the gradients [n_rows, n_in] of the propagated features and of the rows' own features from grad_inputs
// [n_rows, 2 n_in]. grad_q null: P and Q have one matrix, whose gradient is grad_p.
template <typename T>
void make_inputs_backward(const NgcfRows<T>& rows, const T* grad_inputs, T* grad_p, T* grad_q, T* grad_self,
                          cudaStream_t stream);

}  // namespace cuda
}  // namespace grf
