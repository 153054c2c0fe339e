// Kernels that compute all T steps of a GRU in one launch, for weights that fit into a block's shared memory. A lane is
// one of the B sessions that are processed in parallel. A block processes kLanes lanes and never waits for another
// block. Specification: gru4rec_fast/ops/gru.py. gru/cuda.cuh computes one unit of a step. q is r * s (reset_before) or
// W_n s + b_n (reset_after); gru/gru.h explains s, W and b. p is the parameter struct of a kernel.
#pragma once

#include "gru/cuda.cuh"

namespace grf::cuda {

constexpr int kGruLanesThreads = 512;

// One value for each lane of a block. The values are stored together, because a thread multiplies each weight that it
// reads by the values of all lanes.
template <typename T, int kLanes>
struct alignas(sizeof(T) * kLanes < 16 ? sizeof(T) * kLanes : 16) LaneValues {
  T lane[kLanes];
};

// Returns the row stride of the transposed weights [H, 3H] that the forward kernel keeps in shared memory. Neighboring
// threads compute neighboring gate units, so they read neighboring elements of a row. The stride is odd to avoid bank
// conflicts while the transposed weights are written.
__host__ __device__ inline int gru_weight_stride(int hidden) {
  return 3 * hidden | 1;
}

// Returns the sum over k < n of weight[k * stride] * values[k] for each lane, as one chain of multiply-adds.
template <typename T, int kLanes>
__device__ __forceinline__ LaneValues<T, kLanes> weighted_sum(const T* weight, int stride,
                                                              const LaneValues<T, kLanes>* values, int n) {
  LaneValues<T, kLanes> sums;
#pragma unroll
  for (int l = 0; l < kLanes; ++l) sums.lane[l] = 0;
#pragma unroll 4
  for (int k = 0; k < n; ++k) {
    const T w = weight[k * stride];
    const LaneValues<T, kLanes> value = values[k];
#pragma unroll
    for (int l = 0; l < kLanes; ++l) sums.lane[l] = fma(w, value.lane[l], sums.lane[l]);
  }
  return sums;
}

// Calls visit(j, l, lane) for each unit that this thread processes: unit j of the block's lane l, which is lane number
// `lane` of the mini-batch. A thread processes the same units in every call, so it needs no barrier to read what it
// wrote for these units.
template <int kLanes, typename T, typename Visit>
__device__ __forceinline__ void for_block_units(const GruLayer<T>& layer, const Visit& visit) {
  const int n_units = static_cast<int>(layer.hidden) * kLanes;
  for (int i = static_cast<int>(threadIdx.x); i < n_units; i += static_cast<int>(blockDim.x)) {
    const int64_t lane = static_cast<int64_t>(blockIdx.x) * kLanes + i % kLanes;
    if (lane < layer.lanes) visit(i / kLanes, i % kLanes, lane);
  }
}

// Returns the number of elements in shared memory: the weights, and eight values for each unit of each lane. In the
// forward kernel these are the state, q, three products and three gate inputs; the backward kernel uses seven.
__host__ __device__ inline int64_t gru_shared_elements(int hidden, int lanes) {
  return static_cast<int64_t>(hidden) * gru_weight_stride(hidden) + 8ll * hidden * lanes;
}

// Computes `saved` and `output` of all steps.
//
// Launch: one block per kLanes lanes; up to kGruLanesThreads threads, ideally one for each of the 3H gate units;
// gru_shared_elements() elements of shared memory. Reads 3 gate inputs per unit and step, and writes 5 elements. Each
// block also reads the weights once, from L2 except for the first block. For T = 16, B = 32, H = 100 in float32 that is
// 1.8 MB, 0.4 us on an H200 (4.8 TB/s, estimated).
//
// The bottleneck is shared memory: each step reads all weights, 120 KB at 128 bytes per cycle. That takes 0.5 us per
// step and about 9 us in all (estimated at 1.98 GHz). The barriers add to this: two per step, or four in the
// reset_before form.
//
// Hazard: all threads read `state` in `multiply`, and each unit's thread overwrites its element of `state` at the end
// of a step. A barrier separates the reads from the writes, and the writes from the next step's reads. Lanes beyond B
// in the last block hold zeros, and their results are not written.
template <typename T, int kLanes>
__global__ void __launch_bounds__(kGruLanesThreads, 1) gru_lanes_kernel(GruForward<T> p) {
  const GruLayer<T>& layer = p.layer;
  const int hidden = static_cast<int>(layer.hidden), gate_units = 3 * hidden, stride = gru_weight_stride(hidden);
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  const int64_t first_lane = static_cast<int64_t>(blockIdx.x) * kLanes;
  using Values = LaneValues<T, kLanes>;
  GRF_DYNAMIC_SHARED(state, Values);
  Values *const q = state + hidden, *const product = q + hidden, *const inputs = product + gate_units;
  T* const weight = reinterpret_cast<T*>(inputs + gate_units);
  // Computes product = W vector + b for the gate units [begin, end). Also loads their gate inputs into `inputs`; the
  // multiplication hides the latency of these loads.
  const auto multiply = [&](int64_t t, int begin, int end, const Values* vector) {
    for (int v = begin + thread; v < end; v += threads) {
      Values a;
#pragma unroll
      for (int l = 0; l < kLanes; ++l) {
        const int64_t lane = first_lane + l;
        a.lane[l] = lane < layer.lanes ? p.gate_inputs[(t * layer.lanes + lane) * gate_units + v] : T{0};
      }
      Values sums = weighted_sum(weight + v, stride, vector, hidden);
#pragma unroll
      for (int l = 0; l < kLanes; ++l) sums.lane[l] += bias_of(layer, v);
      product[v] = sums;
      inputs[v] = a;
    }
  };

  for (int i = thread; i < gate_units * hidden; i += threads) {
    weight[i % hidden * stride + i / hidden] = layer.weight[i];
  }
  for (int i = thread; i < hidden * kLanes; i += threads) {
    const int j = i / kLanes, l = i % kLanes;
    const int64_t lane = first_lane + l;
    state[j].lane[l] = lane < layer.lanes ? prev_state(layer, p.output, /*t=*/0, lane, j) : T{0};
    q[j].lane[l] = 0;
  }
  __syncthreads();
  for (int64_t t = 0; t < layer.steps; ++t) {
    multiply(t, /*begin=*/0, layer.reset_after ? gate_units : 2 * hidden, state);
    __syncthreads();
    if (!layer.reset_after) {
      for_block_units<kLanes>(layer, [&](int j, int l, int64_t) {
        const T r = logistic(inputs[j].lane[l] + product[j].lane[l]);
        product[j].lane[l] = r;  // `product` now holds the gates r and z
        product[hidden + j].lane[l] = logistic(inputs[hidden + j].lane[l] + product[hidden + j].lane[l]);
        q[j].lane[l] = r * state[j].lane[l];
      });
      __syncthreads();
      multiply(t, 2 * hidden, gate_units, q);
      __syncthreads();
    }
    for_block_units<kLanes>(layer, [&](int j, int l, int64_t lane) {
      // a: gate inputs. w: W s + b in the reset_after form; gates r and z and the product W_n q in reset_before.
      const T a[3] = {inputs[j].lane[l], inputs[hidden + j].lane[l], inputs[2 * hidden + j].lane[l]};
      const T w[3] = {product[j].lane[l], product[hidden + j].lane[l], product[2 * hidden + j].lane[l]};
      const GruGates<T> unit =
          layer.reset_after ? gates_reset_after(a, w) : GruGates<T>{w[0], w[1], tanh(a[2] + w[2]), q[j].lane[l]};
      const T h = write_unit(p, t * layer.lanes + lane, j, unit, state[j].lane[l]);
      const bool reset_next = t + 1 < layer.steps && is_reset(layer, t + 1, lane);
      state[j].lane[l] = reset_next ? T{0} : h;
    });
    __syncthreads();
  }
}

// Computes the gradients of the gate inputs of all steps. If p.grad_state is not null, also writes to it the gradient
// of the state before the first step. The caller computes the gradients of weights and bias after this kernel.
//
// Launch and shared memory: as gru_lanes_kernel. Reads 7 elements per unit and step, and writes 7. For T = 16, B =
// 32, H = 100 in float32 that is 2.9 MB and, with the weights, 0.6 us on an H200 (4.8 TB/s, estimated). The bottleneck
// is shared memory, as in gru_lanes_kernel: about 9 us in all.
//
// Hazard: `sums` is computed for a reset lane as for any other lane, but must not add to the gradients before the
// reset. Therefore prev_gradient returns 0 for a reset lane.
template <typename T, int kLanes>
__global__ void __launch_bounds__(kGruLanesThreads, 1) gru_lanes_backward_kernel(GruBackward<T> p) {
  const GruLayer<T>& layer = p.layer;
  const int hidden = static_cast<int>(layer.hidden), gate_units = 3 * hidden;
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  using Values = LaneValues<T, kLanes>;
  GRF_DYNAMIC_SHARED(partial_grad_state, Values);
  // partial_grad_state [H] is the gradient of the previous state without the sums that prev_gradient adds.
  // grad_recurrent [3H] is the gradient of W s + b. sums [3, H] holds, for each gate, W_gate^T times the gate's part of
  // grad_recurrent, where W_gate are the gate's rows of W. weight is [3H, H].
  Values *const grad_recurrent = partial_grad_state + hidden, *const sums = grad_recurrent + gate_units;
  T* const weight = reinterpret_cast<T*>(sums + gate_units);
  const auto multiply = [&](int first_gate, int last_gate) {
    for (int v = first_gate * hidden + thread; v < (last_gate + 1) * hidden; v += threads) {
      const int gate = v / hidden;
      sums[v] =
          weighted_sum(weight + gate * hidden * hidden + v % hidden, hidden, grad_recurrent + gate * hidden, hidden);
    }
  };
  // Returns the gradient of a unit's previous state in step t.
  const auto prev_gradient = [&](int64_t t, int j, int l, int64_t lane) {
    if (is_reset(layer, t, lane)) return T{0};
    const T sum = partial_grad_state[j].lane[l] + sums[j].lane[l] + sums[hidden + j].lane[l];
    // reset_before: partial_grad_state already includes the sum of gate n, through q.
    return layer.reset_after ? sum + sums[2 * hidden + j].lane[l] : sum;
  };

  // A single step in the reset_after form needs the weights for the gradient of the state only.
  if (layer.steps > 1 || p.grad_state != nullptr || !layer.reset_after) {
    for (int i = thread; i < gate_units * hidden; i += threads) weight[i] = layer.weight[i];
  }
  for (int i = thread; i < gate_units * kLanes; i += threads) grad_recurrent[i / kLanes].lane[i % kLanes] = 0;
  __syncthreads();
  for (int64_t t = layer.steps - 1; t >= 0; --t) {
    for_block_units<kLanes>(layer, [&](int j, int l, int64_t lane) {
      const int64_t row = t * layer.lanes + lane;
      const T grad_next = t + 1 == layer.steps ? T{0} : prev_gradient(t + 1, j, l, lane);
      const T s = prev_state(layer, p.output, t, lane, j);
      GruUnitGradient<T> grad;
      if (layer.reset_after) {
        T unit_gradients[3];
        backward_reset_after(p, row, j, grad_next, s, &grad, unit_gradients);
        for (int gate = 0; gate < 3; ++gate) grad_recurrent[gate * hidden + j].lane[l] = unit_gradients[gate];
      } else {
        grad = backward_reset_before_z_n(p, row, j, grad_next, s);
        grad_recurrent[hidden + j].lane[l] = grad.z;
        grad_recurrent[2 * hidden + j].lane[l] = grad.n;
      }
      partial_grad_state[j].lane[l] = grad.state;
    });
    __syncthreads();
    if (!layer.reset_after) {
      multiply(/*first_gate=*/2, /*last_gate=*/2);
      __syncthreads();
      for_block_units<kLanes>(layer, [&](int j, int l, int64_t lane) {
        const int64_t row = t * layer.lanes + lane;
        const T s = p.prev_states[row * hidden + j];  // written by backward_reset_before_z_n
        grad_recurrent[j].lane[l] =
            backward_reset_before_r(p, row, j, sums[2 * hidden + j].lane[l], s, &partial_grad_state[j].lane[l]);
      });
      __syncthreads();
    }
    if (t == 0 && p.grad_state == nullptr) return;
    multiply(/*first_gate=*/0, layer.reset_after ? 2 : 1);
    __syncthreads();
  }
  for_block_units<kLanes>(
      layer, [&](int j, int l, int64_t lane) { p.grad_state[lane * hidden + j] = prev_gradient(/*t=*/0, j, l, lane); });
}

}  // namespace grf::cuda
