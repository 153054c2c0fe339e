// The GRU for all T steps in one launch, for weights that fit into a block's shared memory. A block processes some
// lanes and never waits for another block. Specification: gru4rec_fast/ops/gru.py; gru/cuda.cuh computes one unit of a
// step.
#pragma once

#include "gru/cuda.cuh"

namespace grf::cuda {

constexpr int kGruLanesThreads = 512;

// One value for each lane of a block, stored together: a weight that a thread reads is multiplied with all of them.
template <typename T, int kLanes>
struct alignas(sizeof(T) * kLanes < 16 ? sizeof(T) * kLanes : 16) LaneValues {
  T lane[kLanes];
};

// Forward, the weights are stored transposed in shared memory: one row of 3H for each k, so that neighboring threads,
// which compute neighboring units, read neighboring elements. The row length is odd to avoid bank conflicts while the
// transpose is written.
__host__ __device__ inline int gru_weight_stride(int hidden) {
  return 3 * hidden | 1;
}

// Returns the sum over k < n of weight[k * stride] * rows[k] for each lane, as one chain of multiply-adds.
template <typename T, int kLanes>
__device__ __forceinline__ LaneValues<T, kLanes> weighted_sum(const T* weight, int stride,
                                                              const LaneValues<T, kLanes>* rows, int n) {
  LaneValues<T, kLanes> sums;
#pragma unroll
  for (int l = 0; l < kLanes; ++l) sums.lane[l] = 0;
#pragma unroll 4
  for (int k = 0; k < n; ++k) {
    const T w = weight[k * stride];
    const LaneValues<T, kLanes> row = rows[k];
#pragma unroll
    for (int l = 0; l < kLanes; ++l) sums.lane[l] = fma(w, row.lane[l], sums.lane[l]);
  }
  return sums;
}

// Calls visit(j, l, lane) for each of this thread's units: unit j of the block's l-th lane. A thread has the same units
// in every call, so it needs no barrier to read what it wrote for them.
template <int kLanes, typename T, typename Visit>
__device__ __forceinline__ void for_block_units(const GruLayer<T>& layer, const Visit& visit) {
  const int units = static_cast<int>(layer.hidden) * kLanes;
  for (int e = static_cast<int>(threadIdx.x); e < units; e += static_cast<int>(blockDim.x)) {
    const int64_t lane = static_cast<int64_t>(blockIdx.x) * kLanes + e % kLanes;
    if (lane < layer.lanes) visit(e / kLanes, e % kLanes, lane);
  }
}

// The number of elements in shared memory, forward and backward.
__host__ __device__ inline int64_t gru_shared_elements(int hidden, int lanes) {
  return static_cast<int64_t>(hidden) * gru_weight_stride(hidden) + 8ll * hidden * lanes;
}

// Computes `saved` and `output` of all steps.
//
// Launch: one block per kLanes lanes, up to kGruLanesThreads threads, ideally one for each of the 3H gate units;
// gru_shared_elements() elements of shared memory. Per unit and step it reads 3 gate inputs and writes 5 elements, and
// each block reads the weights once, from L2 except for the first block. For T = 16, B = 32, H = 100 in float32 that is
// 1.8 MB, 0.4 us on an H200 (4.8 TB/s, estimated).
//
// The bottleneck is shared memory: each step reads all weights, 120 KB at 128 bytes per cycle, 0.5 us per step and
// about 9 us in all (estimated at 1.98 GHz). The barriers come on top, two per step, four in the reset_before form.
//
// Hazard: `state` is read by all threads in `multiply` and overwritten by each unit's thread at the end of a step, so
// each is followed by a barrier. Lanes beyond B in the last block hold zeros and are never written.
template <typename T, int kLanes>
__global__ void __launch_bounds__(kGruLanesThreads, 1) gru_lanes_kernel(GruForward<T> p) {
  const GruLayer<T>& layer = p.layer;
  const int hidden = static_cast<int>(layer.hidden), gates = 3 * hidden, stride = gru_weight_stride(hidden);
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  const int64_t first_lane = static_cast<int64_t>(blockIdx.x) * kLanes;
  using Values = LaneValues<T, kLanes>;
  GRF_DYNAMIC_SHARED(state, Values);
  Values *const q = state + hidden, *const product = q + hidden, *const inputs = product + gates;
  T* const weight = reinterpret_cast<T*>(inputs + gates);
  // Computes product = W vector + b for the gate units [begin, end). Loads their gate inputs at the same time, which
  // hides the latency of memory.
  const auto multiply = [&](int64_t t, int begin, int end, const Values* vector) {
    for (int v = begin + thread; v < end; v += threads) {
      Values a;
#pragma unroll
      for (int l = 0; l < kLanes; ++l) {
        const int64_t lane = first_lane + l;
        a.lane[l] = lane < layer.lanes ? p.gate_inputs[(t * layer.lanes + lane) * gates + v] : T{0};
      }
      Values sums = weighted_sum(weight + v, stride, vector, hidden);
#pragma unroll
      for (int l = 0; l < kLanes; ++l) sums.lane[l] += bias_of(layer, v);
      product[v] = sums;
      inputs[v] = a;
    }
  };

  for (int i = thread; i < gates * hidden; i += threads) weight[i % hidden * stride + i / hidden] = layer.weight[i];
  for (int e = thread; e < hidden * kLanes; e += threads) {
    const int64_t lane = first_lane + e % kLanes;
    state[e / kLanes].lane[e % kLanes] = lane < layer.lanes ? prev_state(layer, p.output, 0, lane, e / kLanes) : T{0};
    q[e / kLanes].lane[e % kLanes] = 0;
  }
  __syncthreads();
  for (int64_t t = 0; t < layer.steps; ++t) {
    multiply(t, 0, layer.reset_after ? gates : 2 * hidden, state);
    __syncthreads();
    if (!layer.reset_after) {
      for_block_units<kLanes>(layer, [&](int j, int l, int64_t) {
        const T r = logistic(inputs[j].lane[l] + product[j].lane[l]);
        product[j].lane[l] = r;
        product[hidden + j].lane[l] = logistic(inputs[hidden + j].lane[l] + product[hidden + j].lane[l]);
        q[j].lane[l] = r * state[j].lane[l];
      });
      __syncthreads();
      multiply(t, 2 * hidden, gates, q);
      __syncthreads();
    }
    for_block_units<kLanes>(layer, [&](int j, int l, int64_t lane) {
      const T a[3] = {inputs[j].lane[l], inputs[hidden + j].lane[l], inputs[2 * hidden + j].lane[l]};
      const T w[3] = {product[j].lane[l], product[hidden + j].lane[l], product[2 * hidden + j].lane[l]};
      const GruGates<T> unit =
          layer.reset_after ? gates_reset_after(a, w) : GruGates<T>{w[0], w[1], tanh(a[2] + w[2]), q[j].lane[l]};
      const T h = write_unit(p, t * layer.lanes + lane, j, unit, state[j].lane[l]);
      const bool resets = t + 1 < layer.steps && is_reset(layer, t + 1, lane);
      state[j].lane[l] = resets ? T{0} : h;
    });
    __syncthreads();
  }
}

// Computes all gradients except those of weights and bias, for which the caller computes matrix products over all
// steps. If p.grad_state is not null, it becomes the gradient of the state before the first step.
//
// Launch and shared memory: as above. Per unit and step it reads 7 elements and writes 7; for T = 16, B = 32, H = 100
// in float32 that is 2.9 MB and, with the weights, 0.6 us on an H200 (4.8 TB/s, estimated). The bottleneck is shared
// memory, as above: about 9 us in all.
//
// Hazard: `sums` of a reset lane are computed like those of any other, but must not reach the step before the reset;
// `prev_gradient` returns 0 there.
template <typename T, int kLanes>
__global__ void __launch_bounds__(kGruLanesThreads, 1) gru_lanes_backward_kernel(GruBackward<T> p) {
  const GruLayer<T>& layer = p.layer;
  const int hidden = static_cast<int>(layer.hidden), gates = 3 * hidden;
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  using Values = LaneValues<T, kLanes>;
  GRF_DYNAMIC_SHARED(grad_state, Values);
  // grads: gradient of W s + b, 3H; sums: the products of each gate's gradient with its rows of W, 3H; weight: [3H, H].
  Values *const grads = grad_state + hidden, *const sums = grads + gates;
  T* const weight = reinterpret_cast<T*>(sums + gates);
  const auto multiply = [&](int first_gate, int last_gate) {
    for (int v = first_gate * hidden + thread; v < (last_gate + 1) * hidden; v += threads) {
      const int gate = v / hidden;
      sums[v] = weighted_sum(weight + gate * hidden * hidden + v % hidden, hidden, grads + gate * hidden, hidden);
    }
  };
  // The gradient of a unit's previous state in step t.
  const auto prev_gradient = [&](int64_t t, int j, int l, int64_t lane) {
    if (is_reset(layer, t, lane)) return T{0};
    const T sum = grad_state[j].lane[l] + sums[j].lane[l] + sums[hidden + j].lane[l];
    return layer.reset_after ? sum + sums[2 * hidden + j].lane[l] : sum;
  };

  for (int i = thread; i < gates * hidden; i += threads) weight[i] = layer.weight[i];
  for (int e = thread; e < gates * kLanes; e += threads) grads[e / kLanes].lane[e % kLanes] = 0;
  __syncthreads();
  for (int64_t t = layer.steps - 1; t >= 0; --t) {
    for_block_units<kLanes>(layer, [&](int j, int l, int64_t lane) {
      const int64_t row = t * layer.lanes + lane;
      const T grad_next = t + 1 == layer.steps ? T{0} : prev_gradient(t + 1, j, l, lane);
      const T s = prev_state(layer, p.output, t, lane, j);
      GruUnitGradient<T> grad;
      if (layer.reset_after) {
        T grad_recurrent[3];
        backward_reset_after(p, row, j, grad_next, s, &grad, grad_recurrent);
        for (int gate = 0; gate < 3; ++gate) grads[gate * hidden + j].lane[l] = grad_recurrent[gate];
      } else {
        grad = backward_reset_before_output(p, row, j, grad_next, s);
        grads[hidden + j].lane[l] = grad.z;
        grads[2 * hidden + j].lane[l] = grad.n;
      }
      grad_state[j].lane[l] = grad.state;
    });
    __syncthreads();
    if (!layer.reset_after) {
      multiply(2, 2);
      __syncthreads();
      for_block_units<kLanes>(layer, [&](int j, int l, int64_t lane) {
        const int64_t row = t * layer.lanes + lane;
        const T s = p.prev_states[row * hidden + j];
        grads[j].lane[l] =
            backward_reset_before_gates(p, row, j, sums[2 * hidden + j].lane[l], s, &grad_state[j].lane[l]);
      });
      __syncthreads();
    }
    if (t == 0 && p.grad_state == nullptr) return;
    multiply(0, layer.reset_after ? 2 : 1);
    __syncthreads();
  }
  for_block_units<kLanes>(
      layer, [&](int j, int l, int64_t lane) { p.grad_state[lane * hidden + j] = prev_gradient(0, j, l, lane); });
}

}  // namespace grf::cuda
