// The implementation of GruStack (training_step/gru_stack.h).
#include "training_step/gru_stack.h"

#include <algorithm>
#include <cstring>

#include "common/philox.h"
#include "common/rows.h"
#include "dropout/dropout.h"
#include "matrix/product.h"

namespace grf {

template <typename T>
void fill_mask(const StepRange& range, int64_t units, double p, int64_t seed, int64_t stream, T* mask) {
  const T keep_scale = static_cast<T>(1.0 / (1.0 - p));
  uint64_t bits = 0;
  std::memcpy(&bits, &keep_scale, sizeof(T));
  fill_dropout_mask({range.steps, range.lanes, units, static_cast<uint32_t>(stream), static_cast<uint32_t>(range.first),
                     static_cast<uint64_t>(seed), philox::drop_threshold(p), bits, static_cast<int>(sizeof(T)),
                     /*counter=*/nullptr, range.first_lane},
                    mask);
}

template <typename T>
GruStack<T>::GruStack(const std::vector<GruParameters>& layers, double dropout, int64_t seed, Precision precision)
    : layers_(layers.size()), dropout_(dropout), seed_(seed), precision_(precision) {
  for (size_t l = 0; l < layers.size(); ++l) {
    const GruParameters& parameters = layers[l];
    Layer& layer = layers_[l];
    layer.weight_ih = {parameters.weight_ih, "weight_ih"}, layer.weight_hh = {parameters.weight_hh, "weight_hh"};
    layer.bias_ih = {parameters.bias_ih, "bias_ih"}, layer.bias_hh = {parameters.bias_hh, "bias_hh"};
    layer.hidden = parameters.weight_hh.weight.size(1);
    layer.input = parameters.weight_ih.defined() ? parameters.weight_ih.weight.size(1) : 3 * layer.hidden;
    layer.reset_after = parameters.reset_after;
  }
}

template <typename T>
void GruStack<T>::prepare(const StepRange& range, const T* x, const std::vector<T*>& states, const bool* reset) {
  const int64_t rows = range.rows();
  range_ = range, reset_ = reset;
  for (size_t l = 0; l < layers_.size(); ++l) {
    Layer& layer = layers_[l];
    const int64_t hidden = layer.hidden;
    for (Buffer<T>* buffer : {&layer.gate_inputs, &layer.grad_gate_inputs, &layer.grad_recurrent}) {
      buffer->reserve(rows * 3 * hidden);
    }
    layer.saved.reserve(rows * 4 * hidden), layer.grad_inputs.reserve(rows * layer.input);
    layer.bias_ih.grad(), layer.bias_hh.grad();  // allocated here, since compute_gradients_and_update must not fail
    layer.x = x, layer.state = states[l], layer.mask = nullptr;
    x = layer.outputs.reserve(rows * hidden);
    if (dropout_ == 0) continue;
    T* mask = layer.masks.reserve(rows * hidden);
    fill_mask(range, hidden, dropout_, seed_, philox::kStreamHiddenDropout + static_cast<int64_t>(l), mask);
    layer.mask = mask;
  }
}

// Returns the first argument of the functions of gru/cpu.h: some lanes of a layer.
template <typename T>
GruLayer<T> GruStack<T>::gru_layer(Layer& layer, const Lanes& lanes) const {
  const int64_t offset = lanes.first * layer.hidden;
  return {range_.steps,
          lanes.n,
          layer.hidden,
          layer.reset_after,
          layer.state + offset,
          layer.weight_hh.weight(),
          layer.bias_hh.weight(),
          reset_ + lanes.first,
          layer.mask == nullptr ? nullptr : layer.mask + offset,
          precision_};
}

template <typename T>
void GruStack<T>::forward(Layer& layer, const Lanes& lanes) {
  const int64_t rows = range_.steps * lanes.n, hidden = layer.hidden, gates = 3 * hidden;
  T* gate_inputs = layer.gate_inputs.data() + lanes.first * gates;
  const T* x = layer.x + lanes.first * layer.input;
  repeat_row(layer.bias_ih.weight(), rows, gates, gate_inputs);
  if (layer.weight_ih.defined()) {
    multiply<T>(rows, gates, layer.input, {x, layer.input}, {layer.weight_ih.weight(), 1, layer.input}, gate_inputs,
                gates, /*add=*/true, precision_);
  } else {
    for (int64_t i = 0; i < rows * gates; ++i) gate_inputs[i] += x[i];
  }
  gru_forward(gru_layer(layer, lanes), gate_inputs, layer.outputs.data() + lanes.first * hidden,
              layer.saved.data() + lanes.first * 4 * hidden);
}

template <typename T>
void GruStack<T>::forward(const Lanes& lanes) {
  for (Layer& layer : layers_) forward(layer, lanes);
}

template <typename T>
void GruStack<T>::backward(Layer& layer, const Lanes& lanes, const T* grad_output) {
  const int64_t rows = range_.steps * lanes.n, hidden = layer.hidden, gates = 3 * hidden, input = layer.input;
  T* grad_gates = layer.grad_gate_inputs.data() + lanes.first * gates;
  // The gradient of the state before the block is not needed: backpropagation ends at the block's first step.
  const int64_t width = (layer.reset_after ? 3 : 2) * hidden;  // number of columns of grad_recurrent (see gru/cpu.h)
  const GruLaneGradients<T> grads{grad_gates, layer.grad_recurrent.data() + lanes.first * width, /*state=*/nullptr};
  gru_backward_lanes(gru_layer(layer, lanes), grad_output + lanes.first * hidden,
                     layer.outputs.data() + lanes.first * hidden, layer.saved.data() + lanes.first * 4 * hidden, grads);
  if (!layer.weight_ih.defined()) return;
  multiply<T>(rows, input, gates, {grad_gates, gates}, {layer.weight_ih.weight(), input},
              layer.grad_inputs.data() + lanes.first * input, input, /*add=*/false, precision_);
}

template <typename T>
void GruStack<T>::backward(const Lanes& lanes, const T* grad_output) {
  for (size_t l = layers_.size(); l-- > 0;) {
    backward(layers_[l], lanes, grad_output);
    grad_output = layers_[l].grad_x();
  }
}

template <typename T>
void GruStack<T>::compute_gradients(Layer& layer, bool add, const AdagradOptions<T>* update) {
  const int64_t rows = range_.rows(), gates = 3 * layer.hidden, input = layer.input;
  const T* grad_gates = layer.grad_gate_inputs.data();
  // gru_backward_weights writes the gradient of bias_hh even if the layer has no bias_hh. The gradient is then written
  // to gate_inputs, which is not needed any more.
  T* grad_bias_hh = layer.bias_hh.defined() ? layer.bias_hh.grad() : layer.gate_inputs.data();
  const auto update_hh = [&](int64_t first, int64_t count, const T* grad) {
    layer.weight_hh.update_rows(first, count, grad, *update);
  };
  const OnBlock<T> use = update_hh;
  const GruWeightGradients<T> grads{update ? nullptr : layer.weight_hh.grad(), grad_bias_hh, add,
                                    update ? &use : nullptr};
  gru_backward_weights(gru_layer(layer, {0, range_.lanes}), static_cast<const T*>(layer.outputs.data()),
                       static_cast<const T*>(layer.saved.data()), grad_gates,
                       static_cast<const T*>(layer.grad_recurrent.data()), grads);
  add_column_sums(grad_gates, rows, gates, gates, layer.bias_ih.start_grad(add));
  if (update) layer.bias_ih.update(*update), layer.bias_hh.update(*update);
  if (!layer.weight_ih.defined()) return;
  const Matrix<T> grad{grad_gates, 1, gates}, x{layer.x, input};
  if (update) {
    const auto update_ih = [&](int64_t first, int64_t count, const T* grad) {
      layer.weight_ih.update_rows(first, count, grad, *update);
    };
    multiply_by_blocks<T>(gates, input, rows, grad, x, update_ih, precision_);
  } else {
    multiply<T>(gates, input, rows, grad, x, layer.weight_ih.grad(), input, add, precision_);
  }
}

template <typename T>
void GruStack<T>::compute_gradients(bool add, const AdagradOptions<T>* update) {
  for (Layer& layer : layers_) compute_gradients(layer, add, update);
}

template <typename T>
void GruStack<T>::release_memory() {
  for (Layer& layer : layers_) {
    release(layer.gate_inputs, layer.outputs, layer.saved, layer.masks, layer.grad_gate_inputs, layer.grad_recurrent,
            layer.grad_inputs);
    for (DenseParameter<T>* parameter : {&layer.weight_ih, &layer.weight_hh, &layer.bias_ih, &layer.bias_hh}) {
      parameter->release_grad();
    }
  }
}

template <typename T>
void GruStack<T>::write_states() {
  for (Layer& layer : layers_) {
    const int64_t size = range_.lanes * layer.hidden;
    std::copy_n(layer.outputs.data() + (range_.steps - 1) * size, size, layer.state);
  }
}

template <typename T>
void GruStack<T>::scale_gradients(T factor) {
  for (Layer& layer : layers_) {
    for (DenseParameter<T>* parameter : {&layer.weight_ih, &layer.weight_hh, &layer.bias_ih, &layer.bias_hh}) {
      parameter->scale_grad(factor);
    }
  }
}

template <typename T>
void GruStack<T>::update(const AdagradOptions<T>& options) {
  for (Layer& layer : layers_) {
    layer.weight_ih.update(options), layer.weight_hh.update(options);
    layer.bias_ih.update(options), layer.bias_hh.update(options);
  }
}

template void fill_mask<float>(const StepRange&, int64_t, double, int64_t, int64_t, float*);
template void fill_mask<double>(const StepRange&, int64_t, double, int64_t, int64_t, double*);
template class GruStack<float>;
template class GruStack<double>;

}  // namespace grf
