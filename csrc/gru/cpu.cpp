// GRU with resets on the CPU, forward and backward. Specification: gru4rec_fast/ops/gru.py.
//
// Each step computes one matrix product of all lanes' states with the recurrent weights, then makes one pass over each
// lane's gates (gru/cpu_kernel.inc). The reset_before form takes two products and two passes. For a lane that is reset,
// rows of zeros replace the lane's state and the lane's row of the product. Backward processes about 1,024
// rows (steps times lanes) at a time; one product over them adds to the gradient of the weights. The matrix products
// are the bottleneck. gru/gru.h explains lane, s, W, W_rz, W_n and q.
#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "common/scratch.h"
#include "gru/cpu.h"
#include "matrix/product.h"

#define GRF_KERNEL "gru/cpu_kernel.inc"
#include "common/foreach_isa.h"

namespace grf {
namespace {

// A layer with rows of zeros and ones that replace a missing bias, a missing mask and the state of a reset lane.
template <typename T>
struct PaddedLayer : GruLayer<T> {
  const T *zeros, *ones;  // [3H], [H]

  // Writes the zeros and ones to `constants` [4H].
  PaddedLayer(const GruLayer<T>& layer, T* constants)
      : GruLayer<T>(layer), zeros(constants), ones(constants + 3 * layer.hidden) {
    std::fill_n(constants, 3 * this->hidden, T{0});
    std::fill_n(constants + 3 * this->hidden, this->hidden, T{1});
    if (this->bias == nullptr) this->bias = zeros;
  }

  bool is_reset(int64_t t, int64_t lane) const { return this->reset != nullptr && this->reset[t * this->lanes + lane]; }
  // Returns the lane's row [H] of the output mask in step t.
  const T* mask_of(int64_t t, int64_t lane) const {
    return this->mask == nullptr ? ones : this->mask + (t * this->lanes + lane) * this->hidden;
  }
  // Returns s [H], the state of a lane before step t: zeros if the lane is reset. `output` holds the outputs of earlier
  // steps.
  const T* prev_state(const T* output, int64_t t, int64_t lane) const {
    return is_reset(t, lane) ? zeros : prev_output(output, t) + lane * this->hidden;
  }
  // Returns the states [B, H] of all lanes before step t, as if no lane were reset.
  const T* prev_output(const T* output, int64_t t) const {
    return t == 0 ? this->state : output + (t - 1) * this->lanes * this->hidden;
  }

  // Calls pass(lane) for all lanes, in parallel.
  template <typename Pass>
  void for_lanes(const Pass& pass) const {
    // A thread takes at least 8192 units.
    const int64_t grain_size = std::max<int64_t>(1, 8192 / std::max<int64_t>(this->hidden, 1));
    at::parallel_for(0, this->lanes, grain_size, [&](int64_t begin, int64_t end) {
      for (int64_t lane = begin; lane < end; ++lane) pass(lane);
    });
  }
};

// Tags of the buffers that Scratch keeps for each thread.
struct ForwardScratch;
struct BackwardScratch;

}  // namespace

template <typename T>
void gru_forward(const GruLayer<T>& layer, const T* gate_inputs, T* output, T* saved) {
  const int64_t lanes = layer.lanes, hidden = layer.hidden, width = (layer.reset_after ? 3 : 2) * hidden;
  Scratch<T, ForwardScratch> scratch(4 * hidden + 3 * lanes * hidden);
  const PaddedLayer<T> padded(layer, scratch.take(4 * hidden));
  T* products = scratch.take(3 * lanes * hidden);  // W s [B, 3H]; reset_before: W_rz s [B, 2H], W_n q [B, H]
  T* products_n = products + 2 * lanes * hidden;
  const auto reset_after_step = GRF_DISPATCH(gru_reset_after<T>);
  const auto reset_before_gates = GRF_DISPATCH(gru_reset_before_gates<T>);
  const auto reset_before_output = GRF_DISPATCH(gru_reset_before_output<T>);
  for (int64_t t = 0; t < layer.steps; ++t) {
    // Returns the lane's row in step t of an array [T, B, factor * H].
    const auto row = [&](auto* array, int64_t factor, int64_t lane) {
      return array + (t * lanes + lane) * factor * hidden;
    };
    multiply<T>(lanes, width, hidden, {padded.prev_output(output, t), hidden}, {padded.weight, 1, hidden}, products,
                width, /*add=*/false, padded.precision);
    if (layer.reset_after) {
      padded.for_lanes([&](int64_t lane) {
        const T* product = padded.is_reset(t, lane) ? padded.zeros : products + lane * width;
        reset_after_step(hidden, row(gate_inputs, 3, lane), product, padded.bias, padded.prev_state(output, t, lane),
                         padded.mask_of(t, lane), row(saved, 4, lane), row(output, 1, lane));
      });
      continue;
    }
    padded.for_lanes([&](int64_t lane) {
      const T* product = padded.is_reset(t, lane) ? padded.zeros : products + lane * width;
      reset_before_gates(hidden, row(gate_inputs, 3, lane), product, padded.prev_state(output, t, lane),
                         row(saved, 4, lane));
    });
    multiply<T>(lanes, hidden, hidden, {row(saved, 4, 0) + 3 * hidden, 4 * hidden},
                {padded.weight + 2 * hidden * hidden, 1, hidden}, products_n, hidden, /*add=*/false, padded.precision);
    padded.for_lanes([&](int64_t lane) {
      reset_before_output(hidden, row(gate_inputs, 3, lane), products_n + lane * hidden,
                          padded.prev_state(output, t, lane), padded.mask_of(t, lane), row(saved, 4, lane),
                          row(output, 1, lane));
    });
  }
}

template <typename T>
void gru_backward_lanes(const GruLayer<T>& layer, const T* grad_output, const T* output, const T* saved,
                        const GruLaneGradients<T>& grads) {
  const int64_t lanes = layer.lanes, hidden = layer.hidden, width = (layer.reset_after ? 3 : 2) * hidden;
  Scratch<T, BackwardScratch> scratch(4 * hidden + 2 * lanes * hidden);
  const PaddedLayer<T> padded(layer, scratch.take(4 * hidden));
  T* grad_q = scratch.take(lanes * hidden);
  // grad_recurrent is 0 in lanes that are reset.
  T *grad_gate_inputs = grads.gate_inputs, *grad_recurrent = grads.recurrent;
  // The gradient of the state between steps t and t + 1; after the loop, of the state before the first step.
  T* grad_state = grads.state != nullptr ? grads.state : scratch.take(lanes * hidden);
  const T* weight_n = padded.weight + 2 * hidden * hidden;
  const auto reset_after_step = GRF_DISPATCH(gru_reset_after_backward<T>);
  const auto reset_before_z_n = GRF_DISPATCH(gru_reset_before_backward_z_n<T>);
  const auto reset_before_r = GRF_DISPATCH(gru_reset_before_backward_r<T>);
  if (grads.next_state == nullptr) {
    std::fill_n(grad_state, lanes * hidden, T{0});
  } else if (grads.next_state != grad_state) {
    std::copy_n(grads.next_state, lanes * hidden, grad_state);
  }
  for (int64_t t = layer.steps - 1; t >= 0; --t) {
    // Returns the lane's row in step t of an array [T, B, factor * H].
    const auto row = [&](auto* array, int64_t factor, int64_t lane) {
      return array + (t * lanes + lane) * factor * hidden;
    };
    // Overwrites a lane's row of gradients if the lane is reset. A product with 0 would keep a NaN.
    const auto clear_if_reset = [&](int64_t lane, T* grads_of_lanes, int64_t row_width) {
      if (padded.is_reset(t, lane)) std::fill_n(grads_of_lanes + lane * row_width, row_width, T{0});
    };
    T* step_grad_recurrent = grad_recurrent + t * lanes * width;
    if (layer.reset_after) {
      padded.for_lanes([&](int64_t lane) {
        reset_after_step(hidden, row(grad_output, 1, lane), padded.mask_of(t, lane), row(saved, 4, lane),
                         padded.prev_state(output, t, lane), row(grad_gate_inputs, 3, lane),
                         step_grad_recurrent + lane * width, grad_state + lane * hidden);
        clear_if_reset(lane, step_grad_recurrent, width);
      });
    } else {
      padded.for_lanes([&](int64_t lane) {
        reset_before_z_n(hidden, row(grad_output, 1, lane), padded.mask_of(t, lane), row(saved, 4, lane),
                         padded.prev_state(output, t, lane), row(grad_gate_inputs, 3, lane),
                         grad_state + lane * hidden);
      });
      multiply<T>(lanes, hidden, hidden, {row(grad_gate_inputs, 3, 0) + 2 * hidden, 3 * hidden}, {weight_n, hidden},
                  grad_q, hidden, /*add=*/false, padded.precision);
      padded.for_lanes([&](int64_t lane) {
        reset_before_r(hidden, row(saved, 4, lane), padded.prev_state(output, t, lane), grad_q + lane * hidden,
                       row(grad_gate_inputs, 3, lane), step_grad_recurrent + lane * width, grad_state + lane * hidden);
        clear_if_reset(lane, step_grad_recurrent, width);
      });
    }
    if (t == 0 && grads.state == nullptr) break;
    multiply<T>(lanes, hidden, width, {step_grad_recurrent, width}, {padded.weight, hidden}, grad_state, hidden,
                /*add=*/true, padded.precision);
    if (layer.reset == nullptr) continue;
    for (int64_t lane = 0; lane < lanes; ++lane) clear_if_reset(lane, grad_state, hidden);
  }
}

namespace {

// Returns layer.state [B, H] or, if a lane that is reset before the first step has an infinite or NaN state, a copy in
// `copy` without the states of such lanes. Their gradients of W s are 0, but in a product 0 * NaN is NaN. (In later
// steps, the step that computed such a state has gradients of NaN itself.)
template <typename T>
const T* state_without_reset(const GruLayer<T>& layer, std::vector<T>& copy) {
  for (int64_t lane = 0; layer.reset != nullptr && lane < layer.lanes; ++lane) {
    const T *begin = layer.state + lane * layer.hidden, *end = begin + layer.hidden;
    if (!layer.reset[lane] || std::all_of(begin, end, [](T x) { return std::isfinite(x); })) continue;
    if (copy.empty()) copy.assign(layer.state, layer.state + layer.lanes * layer.hidden);
    std::fill_n(copy.data() + lane * layer.hidden, layer.hidden, T{0});
  }
  return copy.empty() ? layer.state : copy.data();
}

}  // namespace

template <typename T>
void gru_backward_weights(const GruLayer<T>& p, const T* output, const T* saved, const T* grad_gate_inputs,
                          const T* grad_recurrent, const GruWeightGradients<T>& grads) {
  const int64_t lanes = p.lanes, hidden = p.hidden, rows = p.steps * lanes, width = (p.reset_after ? 3 : 2) * hidden;
  if (!grads.add) std::fill_n(grads.bias, 3 * hidden, T{0});
  if (p.bias != nullptr) {
    at::parallel_for(0, 3 * hidden, 256, [&](int64_t begin, int64_t end) {
      GRF_DISPATCH(gru_bias_gradient<T>)(hidden, rows, begin, end, grad_gate_inputs, saved, grads.bias);
    });
  }
  std::vector<T> state_copy;
  const T* state = state_without_reset(p, state_copy);
  const Matrix<T> grad_n{grad_gate_inputs + 2 * hidden, 1, 3 * hidden}, q{saved + 3 * hidden, 4 * hidden};
  if (grads.weight_callback != nullptr) {  // T is 1, so the only previous state is `state`
    multiply_by_blocks<T>(width, hidden, lanes, {grad_recurrent, 1, width}, {state, hidden}, *grads.weight_callback,
                          p.precision);
    if (p.reset_after) return;
    const auto n_callback = [&](int64_t first, int64_t count, const T* block) {
      (*grads.weight_callback)(2 * hidden + first, count, block);
    };
    multiply_by_blocks<T>(hidden, hidden, lanes, grad_n, q, n_callback, p.precision);
    return;
  }
  // Two products, because the previous state is in `state` for the first step and in `output` for all others.
  multiply<T>(width, hidden, lanes, {grad_recurrent, 1, width}, {state, hidden}, grads.weight, hidden, grads.add,
              p.precision);
  if (rows > lanes) {
    multiply<T>(width, hidden, rows - lanes, {grad_recurrent + lanes * width, 1, width}, {output, hidden}, grads.weight,
                hidden, /*add=*/true, p.precision);
  }
  if (!p.reset_after) {
    multiply<T>(hidden, hidden, rows, grad_n, q, grads.weight + 2 * hidden * hidden, hidden, grads.add, p.precision);
  }
}

#define GRF_INSTANTIATE(T)                                                                                           \
  template void gru_forward<T>(const GruLayer<T>&, const T*, T*, T*);                                                \
  template void gru_backward_lanes<T>(const GruLayer<T>&, const T*, const T*, const T*, const GruLaneGradients<T>&); \
  template void gru_backward_weights<T>(const GruLayer<T>&, const T*, const T*, const T*, const T*,                  \
                                        const GruWeightGradients<T>&);
GRF_INSTANTIATE(float)
GRF_INSTANTIATE(double)
#undef GRF_INSTANTIATE

}  // namespace grf
