// The NGCF layer on raw pointers: the functions of the CPU implementation, and functions that launch the CUDA kernels.
// Specification: gru4rec_fast/ops/ngcf_layer.py.
//
// E [n_nodes, n_in] are the features of a graph's nodes; P and Q are two propagation matrices of the graph. The layer
// computes new features E' [n_rows, n_out] = act(inputs W + b), where inputs [n_rows, 2 n_in] is [P E, Q E * E], and W
// is W1 above W2. If `per_term`, E' = act(P E W1 + b1) + act((Q E * E) W2 + b2): the activation is applied to each of
// the two terms.
#pragma once

#include <cstdint>

#include "common/stream.h"

namespace grf {  // gru4rec_fast

// Flags of a unit (one element of E'), which the forward pass saves for the backward pass.
constexpr int kFirstPositive = 1;   // the argument of the activation is positive; if per_term, of the first activation
constexpr int kSecondPositive = 2;  // the argument of the second activation is positive; only if per_term
constexpr int kKept = 4;            // message dropout keeps the unit

// The operands from which `inputs` is computed.
template <typename T>
struct NgcfRows {
  int64_t n_rows, n_in;
  const T* features;          // [n_columns, n_in]
  const int64_t* self_index;  // [n_rows]: self_index[i] is the row of `features` for row i's node; null: it is row i
  // [n_rows, n_in]: P and Q, both without the identity of "+I", times features; equal pointers if P and Q then agree
  const T *propagated_p, *propagated_q;
  bool p_adds_identity, q_adds_identity;

  constexpr const T* self_row(int64_t row) const { return features + (self_index ? self_index[row] : row) * n_in; }
};

// The activation and the scale of the kept units.
template <typename T>
struct NgcfUnits {
  int64_t n_rows, n_out;
  T slope;       // slope of LeakyReLU for negative arguments
  T keep_scale;  // 1 / (1 - message_dropout)
};

// Random numbers of message dropout.
struct MessageDropout {
  uint32_t drop_threshold;  // a unit is kept if its Philox word is at least the threshold; 0: no dropout
  uint32_t stream, step;    // words of the Philox counter
  uint64_t seed;
  const int64_t* nodes;    // [n_rows]: node of each row; null: row i is node i
  const int64_t* counter;  // CUDA: its value is added to the step; null: nothing is added
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
  T *propagated_p, *propagated_q;  // [n_rows, n_in]; propagated_q is null if P and Q have the same matrix
  T* self_features;                // [n_rows, n_in]
  T *weights, *bias_1, *bias_2;    // [2 n_in, n_out], [n_out], [n_out]
};

// Computes the forward pass on the CPU. weights [2 n_in, n_out] is W1 above W2. If per_term, bias [2, n_out] holds b1
// and b2; otherwise bias [n_out] is b1 + b2. Writes E' to out [n_rows, n_out], and flags [n_rows, n_out].
template <typename T>
void ngcf_forward(const NgcfLayer<T>& layer, const T* weights, const T* bias, bool per_term, T* out, uint8_t* flags);

// Computes the backward pass on the CPU. transposed_weights is [W1^T, W2^T], of shape [n_out, 2 n_in].
template <typename T>
void ngcf_backward(const NgcfLayer<T>& layer, const T* transposed_weights, bool per_term, const T* grad_out,
                   const uint8_t* flags, const NgcfGradients<T>& grads);

namespace cuda {

// Operands of the activation. All are [n_rows, n_out] except the biases.
template <typename T>
struct ActivationOperands {
  const T *bias_1, *bias_2;  // [n_out]
  const T* product_2;        // (Q E * E) W2; null: already part of `out`
  T* out;                    // P E W1 (+ (Q E * E) W2), overwritten by E'
  uint8_t* flags;            // written
};

// Writes the index of rows[i] in `columns`, which must be increasing, to indices[i].
void find_rows(const int64_t* rows, int64_t n_rows, const int64_t* columns, int64_t n_columns, int64_t* indices,
               cudaStream_t stream);

// Computes inputs [n_rows, 2 n_in].
template <typename T>
void make_inputs(const NgcfRows<T>& rows, T* inputs, cudaStream_t stream);

// Adds the biases, applies the activation and message dropout, and writes E' and the flags.
template <typename T>
void activate(const NgcfUnits<T>& units, const MessageDropout& dropout, const ActivationOperands<T>& operands,
              cudaStream_t stream);

// Computes the gradients of the activation's arguments from the gradient of E'. grad_sum_2 is null without per_term.
// All matrices are [n_rows, n_out].
template <typename T>
void activate_backward(const NgcfUnits<T>& units, const T* grad_out, const uint8_t* flags, T* grad_sum_1, T* grad_sum_2,
                       cudaStream_t stream);

// Computes the gradients [n_rows, n_in] of the propagated features and of the rows' own features from grad_inputs
// [n_rows, 2 n_in]. If grad_q is null, P and Q have the same matrix, and grad_p gets the sum of both gradients.
template <typename T>
void make_inputs_backward(const NgcfRows<T>& rows, const T* grad_inputs, T* grad_p, T* grad_q, T* grad_self,
                          cudaStream_t stream);

}  // namespace cuda
}  // namespace grf
