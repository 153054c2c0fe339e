// The fused training step of GRU4Rec on the CPU: mini-batches, negatives, forward, loss, backward and update in one C++
// call, in memory that is reused. It calls the functions of the operators (csrc/gru/cpu.h and others) and has no
// formulas of its own. Specification: gru4rec_fast/training/session_runner.py, which trains the same network by
// autograd.
//
// A lane is one of the B sessions processed in parallel; a dead lane has no session left, a live lane has one. A block
// is T steps of all lanes.
#pragma once

#include <ATen/core/Tensor.h>

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "negative_sampling/negative_sampling.h"
#include "session_batch/cpu.h"
#include "training_step/gru_stack.h"
#include "training_step/output_table.h"

namespace grf {

// The parameters of a nn.SessionNetwork, which are updated in place, and the options of its dropout.
struct NetworkParameters {
  Parameter embedding;  // undefined if the output table is also the input embedding
  bool one_hot;         // true: the rows of `embedding` are the gate inputs of the first layer
  std::vector<GruParameters> layers;
  Parameter output_weight, output_bias;
  double dropout_p_embed, dropout_p_hidden;
  int64_t dropout_seed;
};

// The alias table from which n negatives per step are drawn, with this seed. With n = 0, the only negatives of a lane
// are the targets of the other lanes.
struct NegativeSampler {
  at::Tensor threshold, alias, log_prob;
  int64_t n, seed;
};

// The hyperparameters of the optimizer.
struct Adagrad {
  double lr, momentum, eps;
};

// The part of a training that this process computes, if several processes train copies of one network: some lanes of
// each mini-batch. The targets of the other lanes are negatives, as in one process, unless `independent`.
struct ProcessShare {
  Lanes lanes;
  bool independent;
  // Replaces the elements of a tensor by their sums over all processes. All processes call it in the same order.
  std::function<void(const at::Tensor&)> sum;
};

// The result of one block. With several processes, it is that of all lanes.
struct BlockRecord {
  double loss;            // mean over the steps
  int64_t steps, events;  // events: pairs of input and target
};

// The result of FusedTrainingStep::run.
struct RunRecord {
  std::vector<BlockRecord> blocks;
  bool finished;  // true at the end of the epoch
};

// Is called with the name of each phase of an update when the phase begins: batch, forward, loss, backward, update;
// with several processes, also exchange. If threads run some lanes each, "forward, loss and backward" is one phase. May
// be empty.
using PhaseListener = std::function<void(const char* phase)>;

// Trains a network by blocks. `make` creates the subclass for the dtype of the parameters.
//
// `n_tiles` of train_block and `run`: the scores of a step are computed for ceil(m / n_tiles) of its m live lanes at a
// time, so that more tiles need less memory. The results are equal up to rounding errors.
//
// An update that runs out of memory changes nothing: weights, optimizer state, hidden states and the batcher's position
// are as before it. The memory of this object is freed, and the error of the allocation (see is_out_of_memory) is
// thrown. The update can be repeated, with more tiles. There are two exceptions: while several processes exchange
// gradients, and after the first weight has changed, when only matrix products allocate memory, of a small size. Then
// another error is thrown, which says that the weights are partly updated.
class FusedTrainingStep {
 public:
  // Exists while train_block or `run` executes. Both use the same memory, so only one thread may call them at a time; a
  // second BusyGuard throws an error.
  class BusyGuard {
   public:
    explicit BusyGuard(FusedTrainingStep& step) : busy_(step.busy_) {
      TORCH_CHECK(!busy_.exchange(true), "a FusedTrainingStep is in use by another thread; use one step per thread");
    }
    ~BusyGuard() { busy_ = false; }
    BusyGuard(const BusyGuard&) = delete;
    BusyGuard& operator=(const BusyGuard&) = delete;

   private:
    std::atomic<bool>& busy_;
  };

  // `steps` is T, `accumulate` the number of blocks per update. Throws a ValueError that names the argument if shapes,
  // dtypes or values are wrong.
  static std::unique_ptr<FusedTrainingStep> make(const NetworkParameters& network, const ScoreOptions& options,
                                                 const at::Tensor& log_support, int64_t steps, int64_t accumulate);
  virtual ~FusedTrainingStep() = default;

  // Runs one update on a block: inputs and targets int64 [T, B], reset bool [T, B], negatives int64 [T, N] or
  // undefined. `first_step` is the number of the block's first step, counted from the start of training. `hidden` has
  // one state [B, H] per layer, which is updated. Returns the loss. If the loss is infinite or NaN, nothing is updated.
  virtual double train_block(const at::Tensor& inputs, const at::Tensor& targets, const at::Tensor& reset,
                             const at::Tensor& negatives, int64_t first_step, const std::vector<at::Tensor>& hidden,
                             const Adagrad& optimizer, int64_t n_tiles, const PhaseListener& on_phase) = 0;

  // Trains on the batcher's next mini-batches, for at most `updates` updates or until a step has fewer than `min_live`
  // live lanes. `first_step` and `hidden` are as in train_block. Stops before an update whose loss is infinite or NaN;
  // that loss is then in the last BlockRecord. Also stops before an update that runs out of memory; only if this is the
  // first update of the call, the error is thrown. `poll` is called between updates, about every 50 ms. If `poll`
  // throws, the run ends after a complete update.
  //
  // `share` is null if this process trains alone. Otherwise `hidden` has the states of this process's lanes, and
  // between gradients and update the processes add up their gradients: of the rows that any lane reads, and of the GRU.
  virtual RunRecord run(SessionBatcher& batcher, const NegativeSampler& sampler, int64_t min_live, int64_t first_step,
                        int64_t updates, const std::vector<at::Tensor>& hidden, const Adagrad& optimizer,
                        int64_t n_tiles, const std::function<void()>& poll, const PhaseListener& on_phase,
                        const ProcessShare* share) = 0;

  // The number of updates that have begun to change the weights.
  int64_t n_begun() const { return n_begun_.load(std::memory_order_relaxed); }

 protected:
  std::atomic<int64_t> n_begun_{0};  // another thread may read it while an update runs

 private:
  std::atomic<bool> busy_{false};
};

}  // namespace grf
