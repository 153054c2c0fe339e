// The NGCF layer on raw pointers, and the launchers of its CUDA kernels. Specification:
// gru4rec_fast/ops/ngcf_layer.py.
#pragma once

#include <cstdint>

#include "common/stream.h"

namespace grf {

// The bits of a unit's code, by which the backward pass knows what the forward pass did.
constexpr int kFirstPositive = 1, kSecondPositive = 2, kKept = 4;  // kSecondPositive: of the second term, if per term

// The rows of a layer, and what its weights are multiplied by: `inputs`, P E and Q E * E beside each other.
template <typename T>
struct NgcfRows {
  int64_t n_rows, width;
  const T* features;         // [n_columns, width]
  const int64_t* own_at;     // [n_rows]: which of the features are a row's own; or null: in order
  const T *side_p, *side_q;  // [n_rows, width]: products with the matrices of P and Q without "+I"; one where equal
  bool p_adds_identity, q_adds_identity;

  constexpr const T* own(int64_t row) const { return features + (own_at == nullptr ? row : own_at[row]) * width; }
};

// The units of a layer's result.
template <typename T>
struct NgcfUnits {
  int64_t n_rows, width;
  T slope, kept;  // kept: what units are multiplied by that are not dropped
};

// Which units are dropped.
struct MessageDropout {
  uint32_t threshold;  // a unit is kept where its word reaches this; 0: none is drawn
  uint32_t stream, step;
  uint64_t seed;
  const int64_t* nodes;  // [n_rows], or null: in order
};

// A layer.
template <typename T>
struct NgcfLayer {
  NgcfRows<T> rows;
  NgcfUnits<T> units;
  MessageDropout dropout;
};

// The gradients of a layer; q null where P and Q have one side.
template <typename T>
struct NgcfGradients {
  T *p, *q, *own;                // [n_rows, width]
  T *weights, *bias_1, *bias_2;  // [2 width, units' width]; [units' width] each
};

// On the CPU. weights [2 width, units' width]: W1, and W2 below; bias: the sum of both; with per_term [2, units'
// width].
template <typename T>
void ngcf_forward(const NgcfLayer<T>& layer, const T* weights, const T* bias, bool per_term, T* out, uint8_t* code);

// transposed [units' width, 2 width]: W1^T, and W2^T beside it.
template <typename T>
void ngcf_backward(const NgcfLayer<T>& layer, const T* transposed, bool per_term, const T* grad_out,
                   const uint8_t* code, const NgcfGradients<T>& grads);

namespace cuda {

// What E' is made of; all but the biases [n_rows, width].
template <typename T>
struct NgcfSums {
  const T *bias_1, *bias_2;  // [width]
  const T* second;           // the second term's product; or null: its sum with the first's is in `out`
  T* out;                    // the first term's product, replaced by E'
  uint8_t* code;             // written: what became of a unit
};

// found[i]: where rows[i] stands among the columns, which rise.
void find_rows(const int64_t* rows, int64_t n_rows, const int64_t* columns, int64_t n_columns, int64_t* found,
               cudaStream_t stream);

// Writes inputs [n_rows, 2 width].
template <typename T>
void combine_sides(const NgcfRows<T>& rows, T* inputs, cudaStream_t stream);

// Bias, activation and dropout.
template <typename T>
void activate_units(const NgcfUnits<T>& units, const MessageDropout& dropout, const NgcfSums<T>& sums,
                    cudaStream_t stream);

// Writes the gradients of the first term's sum and, unless it is null, of the second's, from that of E'. All
// [n_rows, width].
template <typename T>
void unactivate_units(const NgcfUnits<T>& units, const T* grad, const uint8_t* code, T* first, T* second,
                      cudaStream_t stream);

// Writes gradients [n_rows, width] of the sides and of the rows' own features from grad_inputs [n_rows, 2 width].
// grad_q null: P and Q have one side, whose gradient goes to grad_p.
template <typename T>
void separate_gradients(const NgcfRows<T>& rows, const T* grad_inputs, T* grad_p, T* grad_q, T* grad_own,
                        cudaStream_t stream);

}  // namespace cuda
}  // namespace grf
