// Training steps of GRU4Rec with nothing between them but C++: sessions, negatives, forward, loss, backward and update,
// one after the other over kept memory. It only sequences the families' own functions, so that the maths stands once;
// the specification is what gru4rec_fast/training/epoch.py does through autograd.
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

// A SessionNetwork's parameters and what it does with them; the tensors stay Python's, and are updated in place.
struct NetworkParts {
  Parameter embedding;  // undefined where the output table is the input embedding too
  bool one_hot;         // `embedding` holds gate inputs
  std::vector<GruParameters> layers;
  Parameter output_weight, output_bias;
  double dropout_p_embed, dropout_p_hidden;
  int64_t dropout_seed;
};

// Where negatives come from; n = 0: the other lanes' targets are the only ones.
struct NegativeSampler {
  at::Tensor threshold, alias, log_prob;
  int64_t n, seed;
};

struct Adagrad {
  double lr, momentum, eps;
};

// What one block of steps came to.
struct BlockRecord {
  double loss;  // mean over its steps
  int64_t steps, events;
};

struct RunRecord {
  std::vector<BlockRecord> blocks;
  bool finished;  // the epoch is over
};

class FusedTrainingStep {
 public:
  // Held while one of the two functions below runs: the memory they keep is for one thread at a time.
  class BusyGuard {
   public:
    explicit BusyGuard(FusedTrainingStep& step) : busy_(step.busy_) {
      TORCH_CHECK(!busy_.exchange(true), "a FusedTrainingStep is in use by another thread");
    }
    ~BusyGuard() { busy_ = false; }
    BusyGuard(const BusyGuard&) = delete;
    BusyGuard& operator=(const BusyGuard&) = delete;

   private:
    std::atomic<bool>& busy_;
  };

  // `steps`: T, of a block; `accumulate`: blocks per update. ValueError names a part that does not fit.
  static std::unique_ptr<FusedTrainingStep> make(const NetworkParts& network, const ScoreOptions& options,
                                                 const at::Tensor& log_support, int64_t steps, int64_t accumulate);
  virtual ~FusedTrainingStep() = default;

  // One update from a block that is given: inputs and targets int64 [T, B], reset bool [T, B], negatives int64 [T, N]
  // or undefined; `first_step` is its number in the whole training, `hidden` one state [B, H] per layer, updated.
  // Nothing is updated where the loss is no finite number. Returns the loss.
  virtual double train_block(const at::Tensor& inputs, const at::Tensor& targets, const at::Tensor& reset,
                             const at::Tensor& negatives, int64_t first_step, const std::vector<at::Tensor>& hidden,
                             const Adagrad& optimizer) = 0;

  // Plays on from where `player` stands, for at most `updates` updates or to the first step with fewer than `min_live`
  // live lanes, and stops before the update whose loss is no finite number (then the last block's). `poll` is called
  // between updates, every so many milliseconds; what it throws ends the run in good order.
  virtual RunRecord run(SessionBatcher& player, const NegativeSampler& source, int64_t min_live, int64_t first_step,
                        int64_t updates, const std::vector<at::Tensor>& hidden, const Adagrad& optimizer,
                        const std::function<void()>& poll) = 0;

 private:
  std::atomic<bool> busy_{false};
};

}  // namespace grf
