// A GRU layer on raw pointers, and the launchers of the CUDA kernels. Specification: gru4rec_fast/ops/gru.py,
// whose names these are.
#pragma once

#include <cstdint>

#include "common/stream.h"
#include "matrix/precision.h"

namespace grf {

// One layer over T steps of B lanes. Rows of gates stand in the order r, z, n.
template <typename T>
struct GruLayer {
  int64_t steps, lanes, hidden;
  bool after;                             // the reset_after form, else reset_before
  const T* state;                         // [B, H], before the first step
  const T* weight;                        // [3H, H]
  const T* bias;                          // [3H], or null
  const bool* reset;                      // [T, B], or null
  const T* mask;                          // [T, B, H], scales the output, or null
  Precision precision = Precision::full;  // of the products on the CPU
};

namespace cuda {

template <typename T>
struct GruForward {
  GruLayer<T> layer;
  const T* gate_inputs;  // [T, B, 3H]
  T* output;             // [T, B, H], written
  T* saved;              // [T, B, 4H], written: r, z, n, q
  // Products of the step that is launched, resets not looked at: W s [B, 3H], or W_rz s [B, 2H] and W_n q [B, H].
  const T *product, *product_n;
};

template <typename T>
struct GruBackward {
  GruLayer<T> layer;
  const T *grad_output, *output, *saved;  // [T, B, H], [T, B, H], [T, B, 4H]
  T* grad_gate_inputs;                    // [T, B, 3H], written
  T* recurrent;                           // [T, B, 3H], written: gradient of W s + b; null in the reset_before form
  T* entering;                            // [T, B, H], written: the states s that the steps began with
  T* carried;       // [B, H]: gradient of the state between steps, before the reset; in the end that of `state`
  const T* grad_q;  // [B, H]: gradient of q in the step that is launched, reset_before
};

// Whether a layer runs in one launch for all its steps, or in one or two for each, between matrix products: by shape
// alone. Weights are to fit in a block's shared memory, and blocks should not wait for others to end.
bool gru_in_one_launch(int64_t lanes, int64_t hidden, int64_t bytes_of_number);

template <typename T>
void gru_all_steps(const GruForward<T>& forward, cudaStream_t stream);
template <typename T>
void gru_all_steps(const GruBackward<T>& backward, cudaStream_t stream);

// Step t, after its products. `second`: of the two launches that the reset_before form takes.
template <typename T>
void gru_one_step(const GruForward<T>& forward, int64_t t, bool second, cudaStream_t stream);
template <typename T>
void gru_one_step(const GruBackward<T>& backward, int64_t t, bool second, cudaStream_t stream);

}  // namespace cuda
}  // namespace grf
