// The kernel of a single step (T = 1) of a layer in the reset_after form, from the layer's input to its output.
// Specification: step_gru in gru4rec_fast/ops/training_step.py. gru/cuda.cuh computes one unit; gru/gru.h explains the
// names. The backward pass of a single step is gru_reset_after_backward_kernel.
#pragma once

#include "common/bfloat16.h"
#include "common/columns.cuh"
#include "gru/cuda.cuh"

namespace grf::cuda {

// A block computes kStepUnits units of kStepLanes lanes. Half of its threads multiply the inputs, the other half the
// states. Both stage kStepVectors vectors of each row at a time in shared memory. A row has one vector more, so that
// the threads of a warp, which read different rows, read different banks.
constexpr int kStepUnits = 4, kStepLanes = 32, kStepHalf = kStepUnits * kStepLanes;
constexpr int kGruStepThreads = 256;
constexpr int kStepVectors = 28, kStepPitch = kStepVectors + 1;
static_assert(kGruStepThreads == 2 * kStepHalf, "a thread per unit and lane in each half");

// Returns elements [first, first + N) of a row of `size` elements, with zeros beyond its end.
template <typename T, int N>
__device__ __forceinline__ Columns<T, N> load_within(const T* row, int64_t first, int64_t size, bool wide) {
  Columns<T, N> columns = {};
  if (wide) {  // then `size` is a multiple of N
    if (first < size) columns = load_columns<T, N>(row + first);
  } else {
    for (int j = 0; j < N; ++j) {
      if (first + j < size) columns.at[j] = row[first + j];
    }
  }
  return columns;
}

// Writes h to the matrix of scored states. In columns H and above, it has a one and then zeros.
template <typename T>
__device__ __forceinline__ void write_scored(const GruOneStep<T>& p, int64_t lane, int64_t column, T h) {
  const int64_t i = lane * p.scored_width + column;
  if (p.scored_bf16 != nullptr) {
    p.scored_bf16[i] = narrow_bfloat16(static_cast<float>(h));
  } else if (p.scored != nullptr) {
    p.scored[i] = h;
  }
}

// Computes `saved`, `output` and the scored states of one step: [x W_ih^T + b_ih] and [s W^T + b], then the gates.
//
// Launch: blocks of kGruStepThreads threads; blockIdx.x is a tile of kStepUnits units, blockIdx.y one of kStepLanes
// lanes. 41 KB of static shared memory. A block reads the rows of its lanes and of its units once, so inputs and states
// are read H / 4 times, from L2. For B = 32, H = 100 in float32: 25 blocks, 0.24 MB of weights, 0.64 MB of inputs and
// states, 7.7 MFLOP. Expected on an H100 or H200: 2 to 2.5 us, two latencies of memory (the rows, then the mask and the
// state) and 25 vectors of each product. The bottleneck is latency there. For B = 128, H = 512 (400 MFLOP) it is shared
// memory, seven cycles of which bring twelve warp-wide multiply-adds: about 16 us.
//
// Writes of neighboring threads are H elements apart: each writes a sector of its own, which the other warps of the
// block complete in L2.
//
// Hazards: a barrier separates the staging of a chunk from its use, and its use from the next staging. All threads of a
// block pass the same barriers, because the number of chunks is that of the longer rows. Units beyond H and lanes
// beyond B are staged as zeros, and not written.
template <typename T>
__global__ void __launch_bounds__(kGruStepThreads, 3) gru_one_step_kernel(GruOneStep<T> p) {
  constexpr int kN = kWideColumns<T>, kDepth = kStepVectors * kN;
  using Vector = Columns<T, kN>;
  GRF_SHARED(vectors, Vector[2][kStepLanes][kStepPitch]);  // rows of x and of s
  GRF_SHARED(weights, Vector[2][3 * kStepUnits][kStepPitch]);
  GRF_SHARED(recurrent, T[3][kStepHalf]);  // W s
  const GruLayer<T>& layer = p.forward.layer;
  const int thread = static_cast<int>(threadIdx.x) % kStepHalf, half = static_cast<int>(threadIdx.x) / kStepHalf;
  const int lane_in_block = thread % kStepLanes, unit_in_block = thread / kStepLanes;
  const int64_t first_unit = static_cast<int64_t>(blockIdx.x) * kStepUnits,
                first_lane = static_cast<int64_t>(blockIdx.y) * kStepLanes;
  const int64_t lane = first_lane + lane_in_block, j = first_unit + unit_in_block, hidden = layer.hidden;
  // The product of this half: rows of `weight` times rows of `input`.
  const T *const weight = half == 0 ? p.weight_ih : layer.weight, *const input = half == 0 ? p.x : layer.state;
  const int64_t depth = half == 0 ? p.input : hidden, longer = p.input < hidden ? hidden : p.input;
  const bool wide = half == 0 ? p.wide_input : p.wide_state;

  T sums[3] = {};
  for (int64_t first = 0; first < longer; first += kDepth) {
    __syncthreads();
    for (int i = thread; i < (kStepLanes + 3 * kStepUnits) * kStepVectors; i += kStepHalf) {
      const int row = i / kStepVectors, k = i % kStepVectors;
      const int64_t column = first + k * kN;
      if (row < kStepLanes) {
        const int64_t l = first_lane + row;
        const bool is_zero = l >= layer.lanes || (half == 1 && is_reset(layer, /*t=*/0, l));
        vectors[half][row][k] = is_zero ? Vector{} : load_within<T, kN>(input + l * depth, column, depth, wide);
      } else {
        const int w = row - kStepLanes;
        const int64_t unit = first_unit + w % kStepUnits, gate_unit = w / kStepUnits * hidden + unit;
        weights[half][w][k] =
            unit >= hidden ? Vector{} : load_within<T, kN>(weight + gate_unit * depth, column, depth, wide);
      }
    }
    __syncthreads();
    const int64_t left = depth - first;
    const int n = left >= kDepth ? kStepVectors : left <= 0 ? 0 : static_cast<int>((left + kN - 1) / kN);
#pragma unroll 4
    for (int k = 0; k < n; ++k) {
      const Vector v = vectors[half][lane_in_block][k];
#pragma unroll
      for (int gate = 0; gate < 3; ++gate) {
        const Vector w = weights[half][gate * kStepUnits + unit_in_block][k];
#pragma unroll
        for (int e = 0; e < kN; ++e) sums[gate] = fma(w.at[e], v.at[e], sums[gate]);
      }
    }
  }
  if (half == 1) {
    for (int gate = 0; gate < 3; ++gate) recurrent[gate][thread] = sums[gate];
  }
  __syncthreads();
  if (half == 1 || lane >= layer.lanes) return;
  if (blockIdx.x == 0) {
    for (int64_t column = hidden + unit_in_block; column < p.scored_width; column += kStepUnits) {
      write_scored(p, lane, column, column == hidden ? T{1} : T{0});
    }
  }
  if (j >= hidden) return;
  T a[3], w[3];
  for (int gate = 0; gate < 3; ++gate) {
    const int64_t gate_unit = gate * hidden + j;
    a[gate] = sums[gate] + p.bias_ih[gate_unit];
    w[gate] = recurrent[gate][thread] + bias_of(layer, gate_unit);
  }
  const T s = prev_state(layer, p.forward.output, /*t=*/0, lane, j);
  const T h = write_unit(p.forward, lane, j, gates_reset_after(a, w), s);
  write_scored(p, lane, j, h);
}

}  // namespace grf::cuda
