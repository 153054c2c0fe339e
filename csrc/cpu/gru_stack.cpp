#include "cpu/gru_stack.h"

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "common/philox.h"
#include "cpu/dropout.h"
#include "cpu/product.h"
#include "cpu/rows.h"

namespace grf {

template <typename T>
void fill_mask(const StepRange& range, int64_t units, double p, int64_t seed, int64_t stream, T* mask) {
  using Bits = std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>;
  const T kept = static_cast<T>(1.0 / (1.0 - p));
  Bits bits;
  std::memcpy(&bits, &kept, sizeof(T));
  fill_dropout_mask(DropoutMask{range.steps, range.lanes, units, p, seed, stream, range.first}, bits,
                    reinterpret_cast<Bits*>(mask));
}

template <typename T>
GruStack<T>::GruStack(const std::vector<GruParameters>& layers, double dropout, int64_t seed, Precision precision)
    : layers_(layers.size()), dropout_(dropout), seed_(seed), precision_(precision) {
  for (size_t number = 0; number < layers.size(); ++number) {
    const GruParameters& given = layers[number];
    Layer& layer = layers_[number];
    layer.weight_ih = {given.weight_ih, "weight_ih"}, layer.weight_hh = {given.weight_hh, "weight_hh"};
    layer.bias_ih = {given.bias_ih, "bias_ih"}, layer.bias_hh = {given.bias_hh, "bias_hh"};
    layer.hidden = given.weight_hh.weight.size(1);
    layer.input = given.weight_ih.defined() ? given.weight_ih.weight.size(1) : 3 * layer.hidden;
    layer.after = given.after;
  }
}

template <typename T>
const T* GruStack<T>::dropout_mask(Layer& layer, size_t number) {
  if (dropout_ == 0) return nullptr;
  T* mask = layer.masks.room(range_.rows() * layer.hidden);
  const int64_t stream = philox::kStreamHiddenDropout + static_cast<int64_t>(number);
  fill_mask(range_, layer.hidden, dropout_, seed_, stream, mask);
  return mask;
}

template <typename T>
void GruStack<T>::forward(Layer& layer, size_t number, const T* x, const T* state, const bool* reset) {
  const int64_t rows = range_.rows(), hidden = layer.hidden, gates = 3 * hidden;
  T* gate_inputs = layer.gate_inputs.room(rows * gates);
  repeat_row(layer.bias_ih.weight(), rows, gates, gate_inputs);
  if (layer.weight_ih.defined()) {
    multiply<T>(rows, gates, layer.input, {x, layer.input}, {layer.weight_ih.weight(), 1, layer.input}, gate_inputs,
                gates, true, precision_);
  } else {
    for (int64_t i = 0; i < rows * gates; ++i) gate_inputs[i] += x[i];
  }
  layer.x = x;
  layer.output = layer.outputs.room(rows * hidden);
  layer.problem = {range_.steps,
                   range_.lanes,
                   hidden,
                   layer.after,
                   state,
                   layer.weight_hh.weight(),
                   layer.bias_hh.weight(),
                   reset,
                   dropout_mask(layer, number),
                   precision_};
  gru_forward(layer.problem, gate_inputs, layer.output, layer.saved.room(rows * 4 * hidden));
}

template <typename T>
const T* GruStack<T>::forward(const StepRange& range, const T* x, const std::vector<T*>& states, const bool* reset) {
  range_ = range;
  for (size_t number = 0; number < layers_.size(); ++number) {
    forward(layers_[number], number, x, states[number], reset);
    x = layers_[number].output;
  }
  return x;
}

template <typename T>
T* GruStack<T>::backward(Layer& layer, const T* grad_output, bool add, const AdagradOptions<T>* update) {
  const int64_t rows = range_.rows(), hidden = layer.hidden, gates = 3 * hidden, input = layer.input;
  T* grad_gates = layer.grad_gate_inputs.room(rows * gates);
  // No gradient of the state: it does not cross the block's edge. The form of one bias has the other's room to spare.
  T* grad_bias_hh = layer.bias_hh.defined() ? layer.bias_hh.grad() : layer.gate_inputs.room(gates);
  const auto move_hh = [&](int64_t first, int64_t count, const T* grad) {
    layer.weight_hh.update_rows(first, count, grad, *update);
  };
  const UseBlock<T> use = move_hh;
  const GruGradients<T> grads{grad_gates,   nullptr, update ? nullptr : layer.weight_hh.grad(),
                              grad_bias_hh, add,     update ? &use : nullptr};
  gru_backward(layer.problem, grad_output, layer.output, layer.saved.room(rows * 4 * hidden), grads);
  add_column_sums(grad_gates, rows, gates, gates, layer.bias_ih.open_grad(add));
  if (update) layer.bias_ih.update(*update), layer.bias_hh.update(*update);
  if (!layer.weight_ih.defined()) return grad_gates;
  T* grad_x = layer.grad_inputs.room(rows * input);
  multiply<T>(rows, input, gates, {grad_gates, gates}, {layer.weight_ih.weight(), input}, grad_x, input, false,
              precision_);
  const Matrix<T> left{grad_gates, 1, gates}, x{layer.x, input};
  if (update) {
    const auto move_ih = [&](int64_t first, int64_t count, const T* grad) {
      layer.weight_ih.update_rows(first, count, grad, *update);
    };
    multiply_by_blocks<T>(gates, input, rows, left, x, move_ih, precision_);
  } else {
    multiply<T>(gates, input, rows, left, x, layer.weight_ih.grad(), input, add, precision_);
  }
  return grad_x;
}

template <typename T>
T* GruStack<T>::backward(T* grad_output, bool add, const AdagradOptions<T>* update) {
  for (size_t number = layers_.size(); number-- > 0;) {
    grad_output = backward(layers_[number], grad_output, add, update);
  }
  return grad_output;
}

template <typename T>
void GruStack<T>::write_states(const std::vector<T*>& states) const {
  for (size_t number = 0; number < layers_.size(); ++number) {
    const int64_t size = range_.lanes * layers_[number].hidden;
    std::copy_n(layers_[number].output + (range_.steps - 1) * size, size, states[number]);
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
