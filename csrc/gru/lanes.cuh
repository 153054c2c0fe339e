// The GRU of all T steps in one launch, for weights that fit in a block's shared memory. A block owns some lanes and
// waits for no other. Specification: gru4rec_fast/ops/gru.py; what a unit does in a step: gru/cuda.cuh.
#pragma once

#include "gru/cuda.cuh"

namespace grf::cuda {

constexpr int kGruLanesThreads = 512;

// A number of each of a block's lanes, side by side, so that a weight that was read serves all of them.
template <typename T, int kLanes>
struct alignas(sizeof(T) * kLanes < 16 ? sizeof(T) * kLanes : 16) LaneRow {
  T of[kLanes];
};

// Rows of the weights in shared memory, forward: one for each k, so that threads next to each other, which have
// products next to each other, read next to each other. An odd length: threads that fill it do not collide either.
__host__ __device__ inline int gru_weight_stride(int hidden) {
  return 3 * hidden | 1;
}

// sum over k < n of weight[k * stride] * rows[k], for each lane in one chain of multiply-adds.
template <typename T, int kLanes>
__device__ __forceinline__ LaneRow<T, kLanes> weighted_sum(const T* weight, int stride, const LaneRow<T, kLanes>* rows,
                                                           int n) {
  LaneRow<T, kLanes> sums;
#pragma unroll
  for (int l = 0; l < kLanes; ++l) sums.of[l] = 0;
#pragma unroll 4
  for (int k = 0; k < n; ++k) {
    const T w = weight[k * stride];
    const LaneRow<T, kLanes> row = rows[k];
#pragma unroll
    for (int l = 0; l < kLanes; ++l) sums.of[l] = fma(w, row.of[l], sums.of[l]);
  }
  return sums;
}

// Calls use(j, l, lane) for the units of the block's lanes that are this thread's: the same at every call.
template <int kLanes, typename T, typename Use>
__device__ __forceinline__ void for_block_units(const GruLayer<T>& layer, const Use& use) {
  const int units = static_cast<int>(layer.hidden) * kLanes;
  for (int e = static_cast<int>(threadIdx.x); e < units; e += static_cast<int>(blockDim.x)) {
    const int64_t lane = static_cast<int64_t>(blockIdx.x) * kLanes + e % kLanes;
    if (lane < layer.lanes) use(e / kLanes, e % kLanes, lane);
  }
}

// Numbers of shared memory, forward and backward.
__host__ __device__ inline int64_t gru_shared_numbers(int hidden, int lanes) {
  return static_cast<int64_t>(hidden) * gru_weight_stride(hidden) + 8ll * hidden * lanes;
}

// saved and output of all steps.
//
// Launch: a block for kLanes lanes; threads of any number, best one for each of the 3H products. Shared memory:
// gru_shared_numbers(). Read once by each block are the 3H H weights, from L2, and once in all 3 gate inputs of each
// unit and step; written are 5 numbers.
template <typename T, int kLanes>
__global__ void __launch_bounds__(kGruLanesThreads, 1) gru_lanes_kernel(GruForward<T> p) {
  const GruLayer<T>& layer = p.layer;
  const int hidden = static_cast<int>(layer.hidden), gates = 3 * hidden, stride = gru_weight_stride(hidden);
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  const int64_t first_lane = static_cast<int64_t>(blockIdx.x) * kLanes;
  using Row = LaneRow<T, kLanes>;
  GRF_DYNAMIC_SHARED(state, Row);
  Row *const q = state + hidden, *const product = q + hidden, *const inputs = product + gates;
  T* const weight = reinterpret_cast<T*>(inputs + gates);
  // Rows from .. to of W with `vector`, and of the gate inputs, which are on their way meanwhile.
  const auto multiply = [&](int64_t t, int from, int to, const Row* vector) {
    for (int v = from + thread; v < to; v += threads) {
      Row a;
#pragma unroll
      for (int l = 0; l < kLanes; ++l) {
        const int64_t lane = first_lane + l;
        a.of[l] = lane < layer.lanes ? p.gate_inputs[(t * layer.lanes + lane) * gates + v] : T{0};
      }
      Row sums = weighted_sum(weight + v, stride, vector, hidden);
#pragma unroll
      for (int l = 0; l < kLanes; ++l) sums.of[l] += bias_of(layer, v);
      product[v] = sums;
      inputs[v] = a;
    }
  };

  for (int i = thread; i < gates * hidden; i += threads) weight[i % hidden * stride + i / hidden] = layer.weight[i];
  for (int e = thread; e < hidden * kLanes; e += threads) {
    const int64_t lane = first_lane + e % kLanes;
    state[e / kLanes].of[e % kLanes] = lane < layer.lanes ? entering_state(layer, p.output, 0, lane, e / kLanes) : T{0};
    q[e / kLanes].of[e % kLanes] = 0;  // of the last block's lanes that are not there, too
  }
  __syncthreads();
  for (int64_t t = 0; t < layer.steps; ++t) {
    multiply(t, 0, layer.after ? gates : 2 * hidden, state);
    __syncthreads();
    if (!layer.after) {
      for_block_units<kLanes>(layer, [&](int j, int l, int64_t) {
        const T r = logistic(inputs[j].of[l] + product[j].of[l]);
        product[j].of[l] = r;
        product[hidden + j].of[l] = logistic(inputs[hidden + j].of[l] + product[hidden + j].of[l]);
        q[j].of[l] = r * state[j].of[l];
      });
      __syncthreads();
      multiply(t, 2 * hidden, gates, q);
      __syncthreads();
    }
    for_block_units<kLanes>(layer, [&](int j, int l, int64_t lane) {
      const T a[3] = {inputs[j].of[l], inputs[hidden + j].of[l], inputs[2 * hidden + j].of[l]};
      const T w[3] = {product[j].of[l], product[hidden + j].of[l], product[2 * hidden + j].of[l]};
      const GruGates<T> unit = layer.after ? gates_after(a, w) : GruGates<T>{w[0], w[1], tanh(a[2] + w[2]), q[j].of[l]};
      const T h = write_unit(p, t * layer.lanes + lane, j, unit, state[j].of[l]);
      const bool resets = t + 1 < layer.steps && is_reset(layer, t + 1, lane);
      state[j].of[l] = resets ? T{0} : h;
    });
    __syncthreads();
  }
}

// Everything but the weights' gradients, which are products over all steps at the end; `carried`, where it is not null,
// becomes the gradient of the state before the first.
//
// Launch, shared memory: as above. Of each unit and step 7 numbers are read and 7 written.
template <typename T, int kLanes>
__global__ void __launch_bounds__(kGruLanesThreads, 1) gru_lanes_backward_kernel(GruBackward<T> p) {
  const GruLayer<T>& layer = p.layer;
  const int hidden = static_cast<int>(layer.hidden), gates = 3 * hidden;
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  using Row = LaneRow<T, kLanes>;
  GRF_DYNAMIC_SHARED(carried, Row);
  Row *const grads = carried + hidden, *const sums = grads + gates;  // of W s + b; products of each gate's with W
  T* const weight = reinterpret_cast<T*>(sums + gates);              // [3H, H]
  const auto multiply = [&](int first_gate, int last_gate) {
    for (int v = first_gate * hidden + thread; v < (last_gate + 1) * hidden; v += threads) {
      const int gate = v / hidden;
      sums[v] = weighted_sum(weight + gate * hidden * hidden + v % hidden, hidden, grads + gate * hidden, hidden);
    }
  };
  const auto leaving = [&](int64_t t, int j, int l, int64_t lane) {
    if (is_reset(layer, t, lane)) return T{0};
    const T sum = carried[j].of[l] + sums[j].of[l] + sums[hidden + j].of[l];
    return layer.after ? sum + sums[2 * hidden + j].of[l] : sum;
  };

  for (int i = thread; i < gates * hidden; i += threads) weight[i] = layer.weight[i];
  for (int e = thread; e < gates * kLanes; e += threads) grads[e / kLanes].of[e % kLanes] = 0;
  __syncthreads();
  for (int64_t t = layer.steps - 1; t >= 0; --t) {
    for_block_units<kLanes>(layer, [&](int j, int l, int64_t lane) {
      const int64_t row = t * layer.lanes + lane;
      const T arriving = t + 1 == layer.steps ? T{0} : leaving(t + 1, j, l, lane);
      const T s = entering_state(layer, p.output, t, lane, j);
      GruUnitGradient<T> grad;
      if (layer.after) {
        T recurrent[3];
        backward_after(p, row, j, arriving, s, &grad, recurrent);
        for (int gate = 0; gate < 3; ++gate) grads[gate * hidden + j].of[l] = recurrent[gate];
      } else {
        grad = backward_before_output(p, row, j, arriving, s);
        grads[hidden + j].of[l] = grad.z;
        grads[2 * hidden + j].of[l] = grad.n;
      }
      carried[j].of[l] = grad.state;
    });
    __syncthreads();
    if (!layer.after) {
      multiply(2, 2);
      __syncthreads();
      for_block_units<kLanes>(layer, [&](int j, int l, int64_t lane) {
        const int64_t row = t * layer.lanes + lane;
        const T s = p.entering[row * hidden + j];
        grads[j].of[l] = backward_before_reset(p, row, j, sums[2 * hidden + j].of[l], s, &carried[j].of[l]);
      });
      __syncthreads();
    }
    if (t == 0 && p.carried == nullptr) return;
    multiply(0, layer.after ? 2 : 1);
    __syncthreads();
  }
  for_block_units<kLanes>(layer,
                          [&](int j, int l, int64_t lane) { p.carried[lane * hidden + j] = leaving(0, j, l, lane); });
}

}  // namespace grf::cuda
