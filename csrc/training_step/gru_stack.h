// The GRU layers of a network with their gradients and updates: the middle of a training step. Sequences the functions
// of gru/cpu.h, dropout/cpu.h, matrix/product.h and sparse_update/cpu.h; specification: gru4rec_fast/nn/session_gru.py.
#pragma once

#include <cstdint>
#include <vector>

#include "common/scratch.h"
#include "gru/cpu.h"
#include "training_step/parameter.h"

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

// Lanes first .. first + n - 1.
struct Lanes {
  int64_t first, n;
};

template <typename T>
class GruStack {
 public:
  // The tensors behind the parameters are to outlive this.
  GruStack(const std::vector<GruParameters>& layers, double dropout, int64_t seed, Precision precision);

  int64_t input_width() const { return layers_.front().input; }
  int64_t output_width() const { return layers_.back().hidden; }

  // Makes room for a block and draws its dropout masks. x [T, B, input_width()], the states, one [B, H] per layer, and
  // `reset` have to stay as they are until the gradients are taken.
  void begin(const StepRange& range, const T* x, const std::vector<T*>& states, const bool* reset);

  // From x to the last layer's outputs [T, B, H], of some lanes; where there is more than one step, of all. Different
  // lanes may go in different threads.
  void forward(const Lanes& lanes);

  // Back again, from the outputs' gradient [T, B, H] to that of x.
  void backward(const Lanes& lanes, const T* grad_output);

  const T* output() { return layers_.back().outputs.room(0); }
  T* grad_x() { return layers_.front().grad_x(); }

  // The parameters' gradients, once all lanes went both ways; kept, or with `add` added to those kept.
  void take_gradients(bool add) { take_gradients(add, nullptr); }

  // The same at T = 1 with the update in it: a weight's gradient moves it row by row, as it leaves its product.
  void take_gradients_and_update(const AdagradOptions<T>& options) { take_gradients(false, &options); }

  // The states after the last step.
  void write_states();

  void scale_gradients(T factor);

  // Moves the parameters by the gradients kept.
  void update(const AdagradOptions<T>& options);

 private:
  struct Layer {
    DenseParameter<T> weight_ih, weight_hh, bias_ih, bias_hh;
    int64_t input, hidden;
    bool after;
    Buffer<T> gate_inputs, outputs, saved, masks, grad_gate_inputs, grad_recurrent, grad_inputs;
    const T *x = nullptr, *mask = nullptr;
    T* state = nullptr;

    T* grad_x() { return (weight_ih.defined() ? grad_inputs : grad_gate_inputs).room(0); }
  };

  GruLayer<T> problem(Layer& layer, const Lanes& lanes) const;
  void forward(Layer& layer, const Lanes& lanes);
  void backward(Layer& layer, const Lanes& lanes, const T* grad_output);
  void take_gradients(bool add, const AdagradOptions<T>* update);
  void take_gradients(Layer& layer, bool add, const AdagradOptions<T>* update);

  std::vector<Layer> layers_;
  double dropout_;
  int64_t seed_;
  Precision precision_;
  StepRange range_{};
  const bool* reset_ = nullptr;
};

// A mask [range.steps, range.lanes, units] of numbers of type T.
template <typename T>
void fill_mask(const StepRange& range, int64_t units, double p, int64_t seed, int64_t stream, T* mask);

}  // namespace grf
