// The GRU layers of a network with their gradients and updates: the middle of a training step. Sequences the functions
// of cpu/gru.h, cpu/dropout.h, cpu/product.h and cpu/sparse_update.h; specification: gru4rec_fast/nn/session_gru.py.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/gru.h"
#include "cpu/parameter.h"
#include "cpu/scratch.h"

namespace grf {

// One layer's tensors. weight_ih is undefined where the layer is fed its gate inputs, bias_hh in the reset_before form.
struct GruParameters {
  Parameter weight_ih, weight_hh, bias_ih, bias_hh;
  bool after;
};

// T steps of B lanes, and the number of the first in the whole training.
struct StepRange {
  int64_t steps, lanes, first;

  int64_t rows() const { return steps * lanes; }
};

template <typename T>
class GruStack {
 public:
  // The tensors behind the parameters are to outlive this.
  GruStack(const std::vector<GruParameters>& layers, double dropout, int64_t seed, Precision precision);

  int64_t input_width() const { return layers_.front().input; }
  int64_t output_width() const { return layers_.back().hidden; }

  // Outputs [T, B, H] of the last layer, from x [T, B, input_width()] and one state [B, H] per layer. All arguments
  // have to stay as they are until `backward`.
  const T* forward(const StepRange& range, const T* x, const std::vector<T*>& states, const bool* reset);

  // The gradient of x, from that of the outputs. Those of the parameters are kept, or with `add` added to those kept.
  T* backward(T* grad_output, bool add) { return backward(grad_output, add, nullptr); }

  // The same at T = 1 with the update in it: a weight's gradient moves it row by row, as it leaves its product.
  T* backward_and_update(T* grad_output, const AdagradOptions<T>& options) {
    return backward(grad_output, false, &options);
  }

  // The states after the last step of `forward`.
  void write_states(const std::vector<T*>& states) const;

  void scale_gradients(T factor);

  // Moves the parameters by the gradients kept.
  void update(const AdagradOptions<T>& options);

 private:
  struct Layer {
    DenseParameter<T> weight_ih, weight_hh, bias_ih, bias_hh;
    int64_t input, hidden;
    bool after;
    Buffer<T> gate_inputs, outputs, saved, masks, grad_gate_inputs, grad_inputs;
    const T* x = nullptr;
    T* output = nullptr;
    GruLayer<T> problem{};
  };

  void forward(Layer& layer, size_t number, const T* x, const T* state, const bool* reset);
  T* backward(T* grad_output, bool add, const AdagradOptions<T>* update);
  T* backward(Layer& layer, const T* grad_output, bool add, const AdagradOptions<T>* update);
  const T* dropout_mask(Layer& layer, size_t number);

  std::vector<Layer> layers_;
  double dropout_;
  int64_t seed_;
  Precision precision_;
  StepRange range_{};
};

// A mask [range.steps, range.lanes, units] of numbers of type T.
template <typename T>
void fill_mask(const StepRange& range, int64_t units, double p, int64_t seed, int64_t stream, T* mask);

}  // namespace grf
