// The GRU layers of a network, with their gradients and updates, for the fused training step. It calls the functions of
// gru/cpu.h, dropout/dropout.h, matrix/product.h and sparse_update/cpu.h. Specification:
// gru4rec_fast/nn/session_gru.py.
#pragma once

#include <cstdint>
#include <vector>

#include "common/scratch.h"
#include "gru/cpu.h"
#include "training_step/parameter.h"

namespace grf {

// The parameters of one layer. weight_ih is undefined in one-hot mode: the layer then receives the gate inputs
// themselves. bias_hh is undefined in the reset_before form.
struct GruParameters {
  Parameter weight_ih, weight_hh, bias_ih, bias_hh;
  bool reset_after;
};

// The steps of a block: T = `steps` steps of B = `lanes` lanes. A lane is one of the sessions processed in parallel.
// `first` is the number of the first step, counted from the start of training. `first_lane` is the number of the first
// lane, if other processes train other lanes.
struct StepRange {
  int64_t steps, lanes, first, first_lane = 0;

  int64_t rows() const { return steps * lanes; }
};

// The lanes [first, first + n).
struct Lanes {
  int64_t first, n;
};

// The GRU layers. Call `prepare`, `forward` and `backward` for all lanes, then either compute_gradients and `update`
// or, at T = 1, compute_gradients_and_update.
template <typename T>
class GruStack {
 public:
  // The tensors of the parameters must outlive this object.
  GruStack(const std::vector<GruParameters>& layers, double dropout, int64_t seed, Precision precision);

  int64_t input_width() const { return layers_.front().input; }
  int64_t output_width() const { return layers_.back().hidden; }

  // Allocates memory for a block and computes its dropout masks. `forward` reads x [T, B, input_width()], `reset`
  // [T, B] and the states (one [B, H] per layer). From then on, the caller must not change these until the gradients of
  // the parameters are computed.
  void prepare(const StepRange& range, const T* x, const std::vector<T*>& states, const bool* reset);

  // Computes output() [T, B, H] from x. With T = 1, `lanes` may be a part of the lanes, and several threads may call
  // `forward` and `backward` for different lanes. Otherwise `lanes` must be all lanes.
  void forward(const Lanes& lanes);

  // Computes grad_x() [T, B, input_width()] from the gradient of the output [T, B, H].
  void backward(const Lanes& lanes, const T* grad_output);

  const T* output() { return layers_.back().outputs.data(); }
  T* grad_x() { return layers_.front().grad_x(); }

  // Computes the gradients of all parameters or, with `add`, adds to them. `backward` must have run for all lanes.
  void compute_gradients(bool add) { compute_gradients(add, /*update=*/nullptr); }

  // For T = 1: computes the gradients of all parameters and updates the parameters. The gradients of the weights are
  // not stored: they are computed for some rows at a time, which are updated at once. The only allocations are small
  // ones inside matrix products.
  void compute_gradients_and_update(const AdagradOptions<T>& options) { compute_gradients(/*add=*/false, &options); }

  // Frees the memory that `prepare` and compute_gradients have allocated.
  void release_memory();

  // Copies the outputs of the last step to the states.
  void write_states();

  void scale_gradients(T factor);

  // Calls use(gradient, size) for the gradient of each parameter.
  template <typename Use>
  void for_each_gradient(const Use& use) {
    for (Layer& layer : layers_) {
      for (DenseParameter<T>* parameter : {&layer.weight_ih, &layer.weight_hh, &layer.bias_ih, &layer.bias_hh}) {
        if (parameter->defined()) use(parameter->grad(), parameter->size());
      }
    }
  }

  // Updates the parameters by the gradients of compute_gradients.
  void update(const AdagradOptions<T>& options);

 private:
  struct Layer {
    DenseParameter<T> weight_ih, weight_hh, bias_ih, bias_hh;
    int64_t input, hidden;
    bool reset_after;
    // [T, B, 3 H]: gate_inputs, grad_gate_inputs. [T, B, H]: outputs, masks. [T, B, input]: grad_inputs. For saved and
    // grad_recurrent see gru/cpu.h.
    Buffer<T> gate_inputs, outputs, saved, masks, grad_gate_inputs, grad_recurrent, grad_inputs;
    const T *x = nullptr, *mask = nullptr;
    T* state = nullptr;

    T* grad_x() { return (weight_ih.defined() ? grad_inputs : grad_gate_inputs).data(); }
  };

  GruLayer<T> gru_layer(Layer& layer, const Lanes& lanes) const;
  void forward(Layer& layer, const Lanes& lanes);
  void backward(Layer& layer, const Lanes& lanes, const T* grad_output);
  // If `update` is null, compute_gradients stores the gradients; otherwise it updates the parameters.
  void compute_gradients(bool add, const AdagradOptions<T>* update);
  void compute_gradients(Layer& layer, bool add, const AdagradOptions<T>* update);

  std::vector<Layer> layers_;
  double dropout_;
  int64_t seed_;
  Precision precision_;
  StepRange range_{};
  const bool* reset_ = nullptr;
};

// Computes a dropout mask [range.steps, range.lanes, units].
template <typename T>
void fill_mask(const StepRange& range, int64_t units, double p, int64_t seed, int64_t stream, T* mask);

}  // namespace grf
