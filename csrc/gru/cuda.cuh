// What one unit of a GRU does in a step, forward and backward, and the kernels that do it for all units of a step,
// between matrix products. Specification: gru4rec_fast/ops/gru.py, whose names these are.
#pragma once

#include "common/simt.cuh"
#include "gru/gru.h"

namespace grf::cuda {

constexpr int kGruThreads = 256;

template <typename T>
struct GruGates {
  T r, z, n, q;
};

template <typename T>
__device__ __forceinline__ T logistic(T x) {
  return 1 / (1 + exp(-x));
}

template <typename T>
__device__ __forceinline__ bool is_reset(const GruLayer<T>& layer, int64_t t, int64_t lane) {
  return layer.reset != nullptr && layer.reset[t * layer.lanes + lane];
}

// Unit j of the state that a lane enters step t with, given all steps' outputs.
template <typename T>
__device__ __forceinline__ T entering_state(const GruLayer<T>& layer, const T* output, int64_t t, int64_t lane,
                                            int64_t j) {
  if (is_reset(layer, t, lane)) return 0;
  return t == 0 ? layer.state[lane * layer.hidden + j] : output[((t - 1) * layer.lanes + lane) * layer.hidden + j];
}

template <typename T>
__device__ __forceinline__ T bias_of(const GruLayer<T>& layer, int64_t gate_unit) {
  return layer.bias == nullptr ? T{0} : layer.bias[gate_unit];
}

// Gates of the reset_after form from gate inputs a and w = W s + b, each of r, z, n.
template <typename T>
__device__ __forceinline__ GruGates<T> gates_after(const T (&a)[3], const T (&w)[3]) {
  GruGates<T> gates;
  gates.r = logistic(a[0] + w[0]);
  gates.z = logistic(a[1] + w[1]);
  gates.q = w[2];
  gates.n = tanh(a[2] + gates.r * gates.q);
  return gates;
}

// Writes a unit's gates and output; returns the output. `row` is t B + lane.
template <typename T>
__device__ __forceinline__ T write_unit(const GruForward<T>& p, int64_t row, int64_t j, const GruGates<T>& gates, T s) {
  const int64_t hidden = p.layer.hidden;
  T* saved = p.saved + row * 4 * hidden + j;
  saved[0] = gates.r;
  saved[hidden] = gates.z;
  saved[2 * hidden] = gates.n;
  saved[3 * hidden] = gates.q;
  T h = gates.n + gates.z * (s - gates.n);
  if (p.layer.mask != nullptr) h *= p.layer.mask[row * hidden + j];
  p.output[row * hidden + j] = h;
  return h;
}

// Gradients of a unit's gate inputs, and what of the state's gradient passes by the products.
template <typename T>
struct GruUnitGradient {
  T r, z, n, state;
};

// Of z, n and the state, from `arriving`, the gradient that comes from the next step.
template <typename T>
__device__ __forceinline__ GruUnitGradient<T> output_gradient(const GruBackward<T>& p, int64_t row, int64_t j,
                                                              T arriving, T s) {
  const int64_t hidden = p.layer.hidden;
  const T *saved = p.saved + row * 4 * hidden + j, z = saved[hidden], n = saved[2 * hidden];
  T grad_h = p.grad_output[row * hidden + j] + arriving;
  if (p.layer.mask != nullptr) grad_h *= p.layer.mask[row * hidden + j];
  GruUnitGradient<T> grad;
  grad.r = 0;
  grad.z = grad_h * (s - n) * z * (1 - z);
  grad.n = grad_h * (1 - z) * (1 - n * n);
  grad.state = grad_h * z;
  return grad;
}

// The same with r's, reset_after; writes all that the products after the last step take. Returns what W s + b gets.
template <typename T>
__device__ __forceinline__ void backward_after(const GruBackward<T>& p, int64_t row, int64_t j, T arriving, T s,
                                               GruUnitGradient<T>* grad, T (&recurrent)[3]) {
  const int64_t hidden = p.layer.hidden;
  const T *saved = p.saved + row * 4 * hidden + j, r = saved[0], q = saved[3 * hidden];
  *grad = output_gradient(p, row, j, arriving, s);
  grad->r = grad->n * q * r * (1 - r);
  recurrent[0] = grad->r;
  recurrent[1] = grad->z;
  recurrent[2] = grad->n * r;
  T* to_a = p.grad_gate_inputs + row * 3 * hidden + j;
  T* to_recurrent = p.recurrent + row * 3 * hidden + j;
  to_a[0] = grad->r;
  to_a[hidden] = grad->z;
  to_a[2 * hidden] = grad->n;
  for (int gate = 0; gate < 3; ++gate) to_recurrent[gate * hidden] = recurrent[gate];
  p.entering[row * hidden + j] = s;
}

// First half of the reset_before form: z and n.
template <typename T>
__device__ __forceinline__ GruUnitGradient<T> backward_before_output(const GruBackward<T>& p, int64_t row, int64_t j,
                                                                     T arriving, T s) {
  const int64_t hidden = p.layer.hidden;
  const GruUnitGradient<T> grad = output_gradient(p, row, j, arriving, s);
  T* to_a = p.grad_gate_inputs + row * 3 * hidden + j;
  to_a[hidden] = grad.z;
  to_a[2 * hidden] = grad.n;
  p.entering[row * hidden + j] = s;
  return grad;
}

// Second half: r, through q = r s, whose gradient is given; adds to the state's.
template <typename T>
__device__ __forceinline__ T backward_before_reset(const GruBackward<T>& p, int64_t row, int64_t j, T grad_q, T s,
                                                   T* state) {
  const int64_t hidden = p.layer.hidden;
  const T r = p.saved[row * 4 * hidden + j], grad_r = grad_q * s * r * (1 - r);
  p.grad_gate_inputs[row * 3 * hidden + j] = grad_r;
  *state += grad_q * r;
  return grad_r;
}

// A unit in step t: j of its lane; number i of all lanes'; of row t B + lane in what has all steps.
struct GruUnit {
  int64_t i, lane, j, row;
};

// Calls use(unit) for the units that are this thread's.
template <typename T, typename Use>
__device__ __forceinline__ void for_units(const GruLayer<T>& layer, int64_t t, const Use& use) {
  for (int64_t i = global_thread(); i < layer.lanes * layer.hidden; i += all_threads()) {
    const int64_t lane = quotient(i, layer.hidden);
    use(GruUnit{i, lane, i - lane * layer.hidden, t * layer.lanes + lane});
  }
}

// Step t, reset_after: saved and output of all lanes from W s.
//
// Launch: one dimension, any number of blocks of any size; threads take units of lanes in strides of the grid. Of each
// unit 3 gate inputs, 3 products, a state and a mask are read and 5 numbers written, all in a row with its neighbors'.
template <typename T>
__global__ void __launch_bounds__(kGruThreads) gru_after_kernel(GruForward<T> p, int64_t t) {
  const int64_t hidden = p.layer.hidden;
  for_units(p.layer, t, [&](const GruUnit& u) {
    const bool reset = is_reset(p.layer, t, u.lane);
    T a[3], w[3];
    for (int gate = 0; gate < 3; ++gate) {
      const int64_t at = gate * hidden + u.j;
      a[gate] = p.gate_inputs[u.row * 3 * hidden + at];
      w[gate] = (reset ? T{0} : p.product[u.lane * 3 * hidden + at]) + bias_of(p.layer, at);
    }
    write_unit(p, u.row, u.j, gates_after(a, w), entering_state(p.layer, p.output, t, u.lane, u.j));
  });
}

// Step t, reset_before, first half: r, z and q = r s into `saved`, from W_rz s.
//
// Launch: as above; of each unit 5 numbers are read and 3 written.
template <typename T>
__global__ void __launch_bounds__(kGruThreads) gru_before_gates_kernel(GruForward<T> p, int64_t t) {
  const int64_t hidden = p.layer.hidden;
  for_units(p.layer, t, [&](const GruUnit& u) {
    const bool reset = is_reset(p.layer, t, u.lane);
    T gates[2];
    for (int gate = 0; gate < 2; ++gate) {
      const T w = reset ? T{0} : p.product[u.lane * 2 * hidden + gate * hidden + u.j];
      gates[gate] = logistic(p.gate_inputs[u.row * 3 * hidden + gate * hidden + u.j] + w);
      p.saved[u.row * 4 * hidden + gate * hidden + u.j] = gates[gate];
    }
    p.saved[u.row * 4 * hidden + 3 * hidden + u.j] = gates[0] * entering_state(p.layer, p.output, t, u.lane, u.j);
  });
}

// Step t, reset_before, second half: n and the output, from W_n q.
//
// Launch: as above; of each unit 7 numbers are read and 5 written.
template <typename T>
__global__ void __launch_bounds__(kGruThreads) gru_before_output_kernel(GruForward<T> p, int64_t t) {
  const int64_t hidden = p.layer.hidden;
  for_units(p.layer, t, [&](const GruUnit& u) {
    const T* saved = p.saved + u.row * 4 * hidden + u.j;
    const T n = tanh(p.gate_inputs[u.row * 3 * hidden + 2 * hidden + u.j] + p.product_n[u.i]);
    const GruGates<T> gates{saved[0], saved[hidden], n, saved[3 * hidden]};
    write_unit(p, u.row, u.j, gates, entering_state(p.layer, p.output, t, u.lane, u.j));
  });
}

// What arrives in a unit from step t + 1, where `carried` is what left that step.
template <typename T>
__device__ __forceinline__ T arriving_gradient(const GruBackward<T>& p, int64_t t, const GruUnit& u) {
  return t + 1 == p.layer.steps || is_reset(p.layer, t + 1, u.lane) ? T{0} : p.carried[u.i];
}

// Step t backward, reset_after, up to the product that adds `recurrent` W to `carried`.
//
// Launch: as above; of each unit 8 numbers are read and 8 written.
template <typename T>
__global__ void __launch_bounds__(kGruThreads) gru_after_backward_kernel(GruBackward<T> p, int64_t t) {
  for_units(p.layer, t, [&](const GruUnit& u) {
    GruUnitGradient<T> grad;
    T recurrent[3];
    const T s = entering_state(p.layer, p.output, t, u.lane, u.j);
    backward_after(p, u.row, u.j, arriving_gradient(p, t, u), s, &grad, recurrent);
    p.carried[u.i] = grad.state;
  });
}

// Step t backward, reset_before, up to the product that makes grad_q of the gradient of n.
//
// Launch: as above; of each unit 6 numbers are read and 4 written.
template <typename T>
__global__ void __launch_bounds__(kGruThreads) gru_before_backward_output_kernel(GruBackward<T> p, int64_t t) {
  for_units(p.layer, t, [&](const GruUnit& u) {
    const T s = entering_state(p.layer, p.output, t, u.lane, u.j);
    p.carried[u.i] = backward_before_output(p, u.row, u.j, arriving_gradient(p, t, u), s).state;
  });
}

// And from there up to the product that adds that of r and z to `carried`.
//
// Launch: as above; of each unit 4 numbers are read and 2 written.
template <typename T>
__global__ void __launch_bounds__(kGruThreads) gru_before_backward_reset_kernel(GruBackward<T> p, int64_t t) {
  for_units(p.layer, t, [&](const GruUnit& u) {
    T carried = p.carried[u.i];
    backward_before_reset(p, u.row, u.j, p.grad_q[u.i], p.entering[u.row * p.layer.hidden + u.j], &carried);
    p.carried[u.i] = carried;
  });
}

}  // namespace grf::cuda
