// Binds the C++ classes of the fused training step to Python, for gru4rec_fast/training/fused_step.py, which documents
// their arguments.
#include "training_step/bindings.h"

#include <pybind11/stl.h>
#include <torch/csrc/utils/pybind.h>

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "memory_profiler/allocation_counter.h"
#include "training_step/fused_training_step.h"

namespace grf {
namespace {

namespace py = pybind11;
using OptionalTensor = std::optional<at::Tensor>;

Parameter make_parameter(const at::Tensor& weight, const at::Tensor& accumulator, const OptionalTensor& velocity) {
  return {weight, accumulator, velocity.value_or(at::Tensor())};
}

GruParameters make_gru_parameters(const std::optional<Parameter>& weight_ih, const Parameter& weight_hh,
                                  const Parameter& bias_ih, const std::optional<Parameter>& bias_hh,
                                  const std::string& form) {
  return {weight_ih.value_or(Parameter{}), weight_hh, bias_ih, bias_hh.value_or(Parameter{}),
          /*reset_after=*/form == "reset_after"};
}

// Lets Python handle pending signals such as Ctrl-C. Takes the GIL, which Python needs for that.
void poll_signals() {
  const py::gil_scoped_acquire lock;
  if (PyErr_CheckSignals() != 0) throw py::error_already_set();
}

// Returns a listener that records phases in a counter; none for a null pointer.
PhaseListener listener_of(AllocationCounter* counter) {
  if (counter == nullptr) return {};
  return [counter](const char* phase) { counter->begin_phase(phase); };
}

std::unique_ptr<FusedTrainingStep> make_step(const std::optional<Parameter>& embedding, bool one_hot,
                                             const std::vector<GruParameters>& layers, const Parameter& output_weight,
                                             const Parameter& output_bias, double dropout_p_embed,
                                             double dropout_p_hidden, int64_t dropout_seed, const std::string& loss,
                                             double batch_size, double elu_param, double bpreg, double label_smoothing,
                                             double logq, double sample_alpha, bool mask_accidental_hits,
                                             const std::string& precision, const OptionalTensor& log_support,
                                             int64_t steps, int64_t accumulate) {
  const NetworkParameters network{embedding.value_or(Parameter{}),
                                  one_hot,
                                  layers,
                                  output_weight,
                                  output_bias,
                                  dropout_p_embed,
                                  dropout_p_hidden,
                                  dropout_seed};
  const ScoreOptions options{loss_named(loss),          batch_size, elu_param,    bpreg,
                             label_smoothing,           logq,       sample_alpha, mask_accidental_hits,
                             precision_named(precision)};
  return FusedTrainingStep::make(network, options, log_support.value_or(at::Tensor()), steps, accumulate);
}

// Returns the function that calls a Python function with a tensor. Takes the GIL for the call.
std::function<void(const at::Tensor&)> call_python(const py::function& function) {
  return [function](const at::Tensor& tensor) {
    const py::gil_scoped_acquire lock;
    function(tensor);
  };
}

using BlockTuple = std::tuple<double, int64_t, int64_t>;  // loss, steps, events

// Runs updates. Returns a tuple for each block, and whether the epoch is over.
std::pair<std::vector<BlockTuple>, bool> run(FusedTrainingStep& step, SessionBatcher& batcher,
                                             const std::optional<NegativeSampler>& sampler, int64_t min_live,
                                             int64_t first_step, int64_t updates, const std::vector<at::Tensor>& hidden,
                                             double lr, double momentum, double eps, int64_t n_tiles,
                                             AllocationCounter* counter, const ProcessShare* share) {
  const RunRecord record = step.run(batcher, sampler.value_or(NegativeSampler{}), min_live, first_step, updates, hidden,
                                    Adagrad{lr, momentum, eps}, n_tiles, poll_signals, listener_of(counter), share);
  std::vector<BlockTuple> blocks;
  for (const BlockRecord& block : record.blocks) blocks.emplace_back(block.loss, block.steps, block.events);
  return {std::move(blocks), record.finished};
}

double train_block(FusedTrainingStep& step, const at::Tensor& inputs, const at::Tensor& targets,
                   const at::Tensor& reset, const OptionalTensor& negatives, int64_t first_step,
                   const std::vector<at::Tensor>& hidden, double lr, double momentum, double eps, int64_t n_tiles,
                   AllocationCounter* counter) {
  return step.train_block(inputs, targets, reset, negatives.value_or(at::Tensor()), first_step, hidden,
                          Adagrad{lr, momentum, eps}, n_tiles, listener_of(counter));
}

}  // namespace

void bind_training(py::module_& m) {
  using namespace py::literals;
  py::class_<Parameter>(m, "Parameter", "A parameter and its Adagrad state. velocity is None without momentum.")
      .def(py::init(&make_parameter), "weight"_a, "accumulator"_a, "velocity"_a);
  py::class_<GruParameters>(m, "GruParameters", "One GRU layer's parameters, as in nn.SessionGRULayer.")
      .def(py::init(&make_gru_parameters), "weight_ih"_a, "weight_hh"_a, "bias_ih"_a, "bias_hh"_a, "form"_a);
  py::class_<NegativeSampler>(m, "NegativeSampler",
                              "The alias table that negatives are drawn from, their number per step and their seed.")
      .def(py::init<at::Tensor, at::Tensor, at::Tensor, int64_t, int64_t>(), "threshold"_a, "alias"_a, "log_prob"_a,
           "n"_a, "seed"_a);
  py::class_<SessionBatcher>(m, "SessionBatcher",
                             "The training log and the lanes' positions in it, as in ops.session_batch.")
      .def(py::init<at::Tensor, at::Tensor, OptionalTensor, at::Tensor, at::Tensor, at::Tensor>(), "items"_a,
           "offsets"_a, "order"_a, "lane_session"_a, "lane_position"_a, "cursor"_a);
  py::class_<ProcessShare>(m, "ProcessShare", "The lanes of one of several processes, and how sums are computed.")
      .def(py::init([](int64_t first, int64_t n, bool independent, const py::function& sum) {
             return ProcessShare{{first, n}, independent, call_python(sum)};
           }),
           "first"_a, "n"_a, "independent"_a, "sum"_a);
  const py::call_guard<py::gil_scoped_release> without_gil;  // other Python threads run meanwhile
  py::class_<FusedTrainingStep>(m, "FusedTrainingStep", "See gru4rec_fast/training/fused_step.py.")
      .def(py::init(&make_step), py::kw_only(), "embedding"_a, "one_hot"_a, "layers"_a, "output_weight"_a,
           "output_bias"_a, "dropout_p_embed"_a, "dropout_p_hidden"_a, "dropout_seed"_a, "loss"_a, "batch_size"_a,
           "elu_param"_a, "bpreg"_a, "label_smoothing"_a, "logq"_a, "sample_alpha"_a, "mask_accidental_hits"_a,
           "precision"_a, "log_support"_a, "steps"_a, "accumulate"_a)
      .def_property_readonly("n_begun", &FusedTrainingStep::n_begun,
                             "The number of updates that have begun to change the weights.")
      .def("run", &run, without_gil, py::kw_only(), "batcher"_a, "sampler"_a, "min_live"_a, "first_step"_a, "updates"_a,
           "hidden"_a, "lr"_a, "momentum"_a, "eps"_a, "n_tiles"_a, "counter"_a, "share"_a,
           "Run updates; return (loss, steps, events) of each block and whether the epoch is over.")
      .def("train_block", &train_block, without_gil, py::kw_only(), "inputs"_a, "targets"_a, "reset"_a, "negatives"_a,
           "first_step"_a, "hidden"_a, "lr"_a, "momentum"_a, "eps"_a, "n_tiles"_a, "counter"_a,
           "Run one update on a block; return its loss.");
}

}  // namespace grf
