// The computation of one GRU unit in one step, forward and backward, and the kernels that run it for all units of a
// step, between matrix products. Specification: gru4rec_fast/ops/gru.py.
//
// s is a lane's state before the step. q is W_n s + b_n (reset_after) or r * s (reset_before). p is the parameter
// struct of a kernel, GruForward or GruBackward. gru/gru.h explains the other names.
//
// All kernels in this file have the same launch shape: one dimension, any number of blocks of up to kGruThreads
// threads, no shared memory. Each thread processes units in a grid-stride loop over the units of all lanes, so
// neighboring threads read and write neighboring elements. The bytes and times in the kernels' comments are those of
// one launch (all lanes, one step), estimated for an H200 (4.8 TB/s) and float32 with B = 512 and H = 256, without
// reset and bias. All times are shorter than the start of a launch, which takes about 3 us, and most of the data comes
// from L2. The bottleneck is therefore the launch; for larger layers the bottleneck is memory.
#pragma once

#include "common/simt.cuh"
#include "gru/gru.h"

namespace grf::cuda {

constexpr int kGruThreads = 256;

// The gates of a unit, and q.
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

// Returns unit j of s, the lane's state before step t: 0 if the lane is reset.
template <typename T>
__device__ __forceinline__ T prev_state(const GruLayer<T>& layer, const T* output, int64_t t, int64_t lane, int64_t j) {
  if (is_reset(layer, t, lane)) return 0;
  return t == 0 ? layer.state[lane * layer.hidden + j] : output[((t - 1) * layer.lanes + lane) * layer.hidden + j];
}

// Returns the bias of a gate unit: unit j of gate r, z or n has the number j, H + j or 2 H + j.
template <typename T>
__device__ __forceinline__ T bias_of(const GruLayer<T>& layer, int64_t gate_unit) {
  return layer.bias == nullptr ? T{0} : layer.bias[gate_unit];
}

// reset_after: computes the gates of a unit from its gate inputs `a` and from w = W s + b. Both arrays are in the order
// r, z, n.
template <typename T>
__device__ __forceinline__ GruGates<T> gates_reset_after(const T (&a)[3], const T (&w)[3]) {
  GruGates<T> gates;
  gates.r = logistic(a[0] + w[0]);
  gates.z = logistic(a[1] + w[1]);
  gates.q = w[2];
  gates.n = tanh(a[2] + gates.r * gates.q);
  return gates;
}

// Writes a unit's gates and output, and returns the output. `row` is t * B + lane.
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

// The gradients of a unit's three gate inputs and of its element of s. `state` lacks the contribution of the matrix
// products, which the caller adds.
template <typename T>
struct GruUnitGradient {
  T r, z, n, state;
};

// Returns the gradients of the gate inputs z and n and of the previous state, and 0 for r. grad_next is the next step's
// contribution to the gradient of the state after this step. `row` is t * B + lane.
template <typename T>
__device__ __forceinline__ GruUnitGradient<T> output_gradient(const GruBackward<T>& p, int64_t row, int64_t j,
                                                              T grad_next, T s) {
  const int64_t hidden = p.layer.hidden;
  const T *saved = p.saved + row * 4 * hidden + j, z = saved[hidden], n = saved[2 * hidden];
  T grad_h = p.grad_output[row * hidden + j] + grad_next;
  if (p.layer.mask != nullptr) grad_h *= p.layer.mask[row * hidden + j];
  GruUnitGradient<T> grad;
  grad.r = 0;
  grad.z = grad_h * (s - n) * z * (1 - z);
  grad.n = grad_h * (1 - z) * (1 - n * n);
  grad.state = grad_h * z;
  return grad;
}

// reset_after: computes all gradients of a unit in `grad`, and the gradient of W s + b in grad_recurrent. Also writes
// p.grad_gate_inputs, p.grad_recurrent and p.prev_states, which the matrix products after the last step read.
template <typename T>
__device__ __forceinline__ void backward_reset_after(const GruBackward<T>& p, int64_t row, int64_t j, T grad_next, T s,
                                                     GruUnitGradient<T>* grad, T (&grad_recurrent)[3]) {
  const int64_t hidden = p.layer.hidden;
  const T *saved = p.saved + row * 4 * hidden + j, r = saved[0], q = saved[3 * hidden];
  *grad = output_gradient(p, row, j, grad_next, s);
  grad->r = grad->n * q * r * (1 - r);
  grad_recurrent[0] = grad->r;
  grad_recurrent[1] = grad->z;
  grad_recurrent[2] = grad->n * r;
  T* grad_a = p.grad_gate_inputs + row * 3 * hidden + j;
  grad_a[0] = grad->r;
  grad_a[hidden] = grad->z;
  grad_a[2 * hidden] = grad->n;
  for (int gate = 0; gate < 3; ++gate) p.grad_recurrent[(row * 3 + gate) * hidden + j] = grad_recurrent[gate];
  p.prev_states[row * hidden + j] = s;
}

// reset_before, first half: computes the gradients of z and n, writes them to p.grad_gate_inputs and returns them. Also
// returns the gradient of the previous state, without the contribution of q, and writes s to p.prev_states.
template <typename T>
__device__ __forceinline__ GruUnitGradient<T> backward_reset_before_z_n(const GruBackward<T>& p, int64_t row, int64_t j,
                                                                        T grad_next, T s) {
  const int64_t hidden = p.layer.hidden;
  const GruUnitGradient<T> grad = output_gradient(p, row, j, grad_next, s);
  T* grad_a = p.grad_gate_inputs + row * 3 * hidden + j;
  grad_a[hidden] = grad.z;
  grad_a[2 * hidden] = grad.n;
  p.prev_states[row * hidden + j] = s;
  return grad;
}

// reset_before, second half: from grad_q, the gradient of q = r s, computes the gradient of r, writes it to
// p.grad_gate_inputs and returns it. Adds the contribution of q to grad_state, the gradient of the previous state.
template <typename T>
__device__ __forceinline__ T backward_reset_before_r(const GruBackward<T>& p, int64_t row, int64_t j, T grad_q, T s,
                                                     T* grad_state) {
  const int64_t hidden = p.layer.hidden;
  const T r = p.saved[row * 4 * hidden + j], grad_r = grad_q * s * r * (1 - r);
  p.grad_gate_inputs[row * 3 * hidden + j] = grad_r;
  *grad_state += grad_q * r;
  return grad_r;
}

// Indices of unit j of a lane in step t: i = lane * H + j is the unit's index in arrays [B, H], and row = t * B + lane
// is the lane's row in arrays [T * B, ...].
struct GruUnit {
  int64_t i, lane, j, row;
};

// Calls visit(unit) for each unit that this thread processes, in a grid-stride loop.
template <typename T, typename Visit>
__device__ __forceinline__ void for_units(const GruLayer<T>& layer, int64_t t, const Visit& visit) {
  for (int64_t i = global_thread(); i < layer.lanes * layer.hidden; i += all_threads()) {
    const int64_t lane = quotient(i, layer.hidden);
    visit(GruUnit{i, lane, i - lane * layer.hidden, t * layer.lanes + lane});
  }
}

// Step t, reset_after: computes `saved` and `output` of all lanes from `product`, which is W s.
//
// Launch: see the top of the file. Reads 3 gate inputs, 3 products, the previous state and the mask per unit, and
// writes 5 elements: 6.8 MB, 1.4 us.
template <typename T>
__global__ void __launch_bounds__(kGruThreads) gru_reset_after_kernel(GruForward<T> p, int64_t t) {
  const int64_t hidden = p.layer.hidden;
  for_units(p.layer, t, [&](const GruUnit& u) {
    const bool reset = is_reset(p.layer, t, u.lane);
    T a[3], w[3];
    for (int gate = 0; gate < 3; ++gate) {
      const int64_t gate_unit = gate * hidden + u.j;
      a[gate] = p.gate_inputs[u.row * 3 * hidden + gate_unit];
      w[gate] = (reset ? T{0} : p.product[u.lane * 3 * hidden + gate_unit]) + bias_of(p.layer, gate_unit);
    }
    write_unit(p, u.row, u.j, gates_reset_after(a, w), prev_state(p.layer, p.output, t, u.lane, u.j));
  });
}

// Step t, reset_before, first half: computes r, z and q = r s in `saved` from `product`, which is W_rz s.
//
// Launch: see the top of the file. Reads 5 elements per unit and writes 3: 4.2 MB, 0.9 us.
template <typename T>
__global__ void __launch_bounds__(kGruThreads) gru_reset_before_gates_kernel(GruForward<T> p, int64_t t) {
  const int64_t hidden = p.layer.hidden;
  for_units(p.layer, t, [&](const GruUnit& u) {
    const bool reset = is_reset(p.layer, t, u.lane);
    T gates[2];
    for (int gate = 0; gate < 2; ++gate) {
      const T w = reset ? T{0} : p.product[u.lane * 2 * hidden + gate * hidden + u.j];
      gates[gate] = logistic(p.gate_inputs[u.row * 3 * hidden + gate * hidden + u.j] + w);
      p.saved[u.row * 4 * hidden + gate * hidden + u.j] = gates[gate];
    }
    p.saved[u.row * 4 * hidden + 3 * hidden + u.j] = gates[0] * prev_state(p.layer, p.output, t, u.lane, u.j);
  });
}

// Step t, reset_before, second half: computes n in `saved`, and `output`, from product_n, which is W_n q.
//
// Launch: see the top of the file. Reads 7 elements per unit and writes 5: 6.3 MB, 1.3 us.
template <typename T>
__global__ void __launch_bounds__(kGruThreads) gru_reset_before_output_kernel(GruForward<T> p, int64_t t) {
  const int64_t hidden = p.layer.hidden;
  for_units(p.layer, t, [&](const GruUnit& u) {
    const T* saved = p.saved + u.row * 4 * hidden + u.j;
    const T n = tanh(p.gate_inputs[u.row * 3 * hidden + 2 * hidden + u.j] + p.product_n[u.i]);
    const GruGates<T> gates{saved[0], saved[hidden], n, saved[3 * hidden]};
    write_unit(p, u.row, u.j, gates, prev_state(p.layer, p.output, t, u.lane, u.j));
  });
}

// Returns the contribution of step t + 1 to the gradient of a unit's state after step t. The contribution is 0 if t is
// the last step or if the lane is reset before step t + 1.
template <typename T>
__device__ __forceinline__ T next_step_gradient(const GruBackward<T>& p, int64_t t, const GruUnit& u) {
  return t + 1 == p.layer.steps || is_reset(p.layer, t + 1, u.lane) ? T{0} : p.grad_state[u.i];
}

// Backward of step t, reset_after: calls backward_reset_after for the units of all lanes and writes the gradient of s
// to grad_state, unless that is null. The caller then adds grad_recurrent[t] W to grad_state.
//
// Launch: see the top of the file. Reads 8 elements per unit and writes 8: 8.4 MB, 1.7 us.
template <typename T>
__global__ void __launch_bounds__(kGruThreads) gru_reset_after_backward_kernel(GruBackward<T> p, int64_t t) {
  for_units(p.layer, t, [&](const GruUnit& u) {
    GruUnitGradient<T> grad;
    T grad_recurrent[3];
    const T s = prev_state(p.layer, p.output, t, u.lane, u.j);
    backward_reset_after(p, u.row, u.j, next_step_gradient(p, t, u), s, &grad, grad_recurrent);
    if (p.grad_state != nullptr) p.grad_state[u.i] = grad.state;
  });
}

// Backward of step t, reset_before, first half: calls backward_reset_before_z_n for the units of all lanes and
// writes the gradient of s to grad_state. The caller then multiplies the gradient of n by W_n to get grad_q.
//
// Launch: see the top of the file. Reads 6 elements per unit and writes 4: 5.2 MB, 1.1 us.
template <typename T>
__global__ void __launch_bounds__(kGruThreads) gru_reset_before_backward_z_n_kernel(GruBackward<T> p, int64_t t) {
  for_units(p.layer, t, [&](const GruUnit& u) {
    const T s = prev_state(p.layer, p.output, t, u.lane, u.j);
    p.grad_state[u.i] = backward_reset_before_z_n(p, u.row, u.j, next_step_gradient(p, t, u), s).state;
  });
}

// Backward of step t, reset_before, second half: calls backward_reset_before_r for the units of all lanes, which
// adds to grad_state. The caller then multiplies the gradients of r and z by W_rz and adds the product to grad_state.
//
// Launch: see the top of the file. Reads 4 elements per unit and writes 2: 3.1 MB, 0.7 us.
template <typename T>
__global__ void __launch_bounds__(kGruThreads) gru_reset_before_backward_r_kernel(GruBackward<T> p, int64_t t) {
  for_units(p.layer, t, [&](const GruUnit& u) {
    T grad_state = p.grad_state[u.i];
    backward_reset_before_r(p, u.row, u.j, p.grad_q[u.i], p.prev_states[u.row * p.layer.hidden + u.j], &grad_state);
    p.grad_state[u.i] = grad_state;
  });
}

}  // namespace grf::cuda
