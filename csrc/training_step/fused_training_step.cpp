// The implementation of FusedTrainingStep for float and double parameters. A lane is one of the B sessions processed in
// parallel; a dead lane has no session left, a live lane has one. A block is T steps of all lanes.
#include "training_step/fused_training_step.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <chrono>
#include <cmath>

#include "common/checks.h"
#include "common/operator.h"
#include "common/out_of_memory.h"
#include "common/philox.h"
#include "common/rows.h"
#include "common/simd.h"

namespace grf {
namespace {

constexpr int64_t kMinLanesPerThread = 16;         // fewer lanes do not fill the tiles of a matrix product
constexpr int64_t kCacheBytes = int64_t{1} << 20;  // the part of a core's L2 that output rows may use

// T steps of a mini-batch with B lanes and n negatives per step, and the targets of n_others lanes of other processes.
struct Block {
  StepRange range;
  const int64_t *inputs, *targets;  // [T, B], -1 in dead lanes
  const bool* reset;                // [T, B]
  const int64_t* negatives;         // [T, n]
  int64_t n;
  const int64_t* other_targets = nullptr;  // [T, n_others], -1 in dead lanes
  int64_t n_others = 0;

  // Returns the number of pairs of input and target, those of other processes included.
  int64_t n_events() const {
    const int64_t others = range.steps * n_others;
    return range.rows() + others - std::count(targets, targets + range.rows(), int64_t{-1}) -
           std::count(other_targets, other_targets + others, int64_t{-1});
  }
};

// Checks the item indices of inputs and targets.
void check_events(const Block& block, int64_t n_items) {
  for (int64_t i = 0; i < block.range.rows(); ++i) {
    const int64_t input = block.inputs[i], target = block.targets[i];
    const bool dead = input == -1 && target == -1 && !block.reset[i];
    TORCH_CHECK_VALUE(dead || (0 <= input && input < n_items && 0 <= target && target < n_items), "item index ",
                      0 <= input && input < n_items ? target : input, " is out of range for a catalogue of ", n_items,
                      " items");
  }
}

void check_negatives(const Block& block, int64_t n_items) {
  for (int64_t i = 0; i < block.range.steps * block.n; ++i) {
    TORCH_CHECK_VALUE(0 <= block.negatives[i] && block.negatives[i] < n_items, "negative ", block.negatives[i],
                      " is out of range for a catalogue of ", n_items, " items");
  }
}

// Checks the sampler and returns the arguments of draw_negatives, except steps, first_step and items, which next_block
// sets.
NegativeDraws make_negative_draws(const NegativeSampler& sampler, int64_t n_items) {
  TORCH_CHECK_VALUE(sampler.n >= 0 && sampler.n <= int64_t{1} << 32, "n=", sampler.n, ": must be in [0, 2**32]");
  if (sampler.n == 0) return {};
  const auto check = [&](const at::Tensor& tensor, const char* name, at::ScalarType dtype) {
    TORCH_CHECK_VALUE(contiguous(tensor, name, {n_items}, dtype).is_same(tensor), name, " must be contiguous");
  };
  check(sampler.threshold, "the sampler's threshold", at::kLong);
  check(sampler.alias, "the sampler's alias", at::kLong);
  check(sampler.log_prob, "the sampler's log_prob", at::kFloat);
  return {sampler.threshold.const_data_ptr<int64_t>(),
          sampler.alias.const_data_ptr<int64_t>(),
          sampler.log_prob.const_data_ptr<float>(),
          n_items,
          /*steps=*/0,
          sampler.n,
          /*first_step=*/0,
          static_cast<uint64_t>(sampler.seed),
          /*items=*/nullptr,
          /*log_prob=*/nullptr};
}

// Calls `change`, which changes weights. If memory runs out, throws an error that says that they are partly updated.
template <typename Change>
void change_weights(const Change& change) {
  try {
    change();
  } catch (const std::exception& error) {
    TORCH_CHECK(!is_out_of_memory(error),
                "out of memory in the middle of an update: the weights are partly updated; resume from a checkpoint");
    throw;
  }
}

// Limits how often signals are polled.
class PollTimer {
 public:
  // Returns true about every 50 ms.
  bool is_due() {
    const auto now = std::chrono::steady_clock::now();
    if (now - last_ < std::chrono::milliseconds(50)) return false;
    last_ = now;
    return true;
  }

 private:
  std::chrono::steady_clock::time_point last_ = std::chrono::steady_clock::now();
};

// The fused training step for parameters of type T.
template <typename T>
class StepImpl final : public FusedTrainingStep {
 public:
  StepImpl(const NetworkParameters& network, const ScoreOptions& options, const at::Tensor& log_support, int64_t steps,
           int64_t accumulate)
      : network_(network),
        stack_(network.layers, network.dropout_p_hidden, network.dropout_seed, options.precision),
        output_(network.output_weight, network.output_bias, log_support, options),
        // Without a separate embedding, the output table also embeds the inputs.
        embedding_(network.embedding.defined() ? network.embedding.rows<T>("embedding.weight") : output_.weight()),
        steps_(steps),
        accumulate_(accumulate) {
    TORCH_CHECK_VALUE(embedding_.width == stack_.input_width(), "embedding.weight must have ", stack_.input_width(),
                      " columns, the inputs of the first GRU layer, not ", embedding_.width);
    TORCH_CHECK_VALUE(output_.width() == stack_.output_width(), "output.weight must have ", stack_.output_width(),
                      " columns, the units of the last GRU layer, not ", output_.width());
    TORCH_CHECK_VALUE(steps > 0 && accumulate > 0, "steps=", steps, ", accumulate=", accumulate, ": must be positive");
  }

  double train_block(const at::Tensor& inputs, const at::Tensor& targets, const at::Tensor& reset,
                     const at::Tensor& negatives, int64_t first_step, const std::vector<at::Tensor>& hidden,
                     const Adagrad& optimizer, int64_t n_tiles, const PhaseListener& on_phase) override {
    const BusyGuard guard(*this);
    on_phase_ = on_phase ? &on_phase : nullptr;
    begin_phase("batch");
    TORCH_CHECK_VALUE(inputs.dim() == 2 && inputs.size(0) > 0, "inputs must be [T, B] with T > 0, not ",
                      inputs.sizes());
    TORCH_CHECK_VALUE(!negatives.defined() || negatives.dim() == 2, "negatives must be [T, N], not ",
                      negatives.sizes());
    check_counters(network_.dropout_seed, first_step, inputs.size(0));
    const auto shape = inputs.sizes();
    const at::Tensor input_items = contiguous(inputs, "inputs", shape, at::kLong);
    const at::Tensor target_items = contiguous(targets, "targets", shape, at::kLong);
    const at::Tensor resets = contiguous(reset, "reset", shape, at::kBool);
    const int64_t n = negatives.defined() ? negatives.size(1) : 0;
    const at::Tensor negative_items =
        negatives.defined() ? contiguous(negatives, "negatives", {shape[0], n}, at::kLong) : at::empty({0}, at::kLong);
    const Block block{{shape[0], shape[1], first_step},         input_items.const_data_ptr<int64_t>(),
                      target_items.const_data_ptr<int64_t>(),   resets.const_data_ptr<bool>(),
                      negative_items.const_data_ptr<int64_t>(), n};
    check_events(block, output_.n_items());
    check_negatives(block, output_.n_items());
    states_ = state_pointers(hidden, shape[1]);
    share_ = nullptr;
    set_tiles(n_tiles, /*steps_per_update=*/shape[0]);
    try {
      clear_gradients();
      const double loss = forward_backward(block, /*loss_scale=*/1.0);
      if (!std::isfinite(loss)) return loss;
      compute_gradients(block, /*add=*/false);
      update(adagrad_options(optimizer));
      return loss;
    } catch (const std::exception& error) {
      if (is_out_of_memory(error)) release_memory();
      throw;
    }
  }

  RunRecord run(SessionBatcher& batcher, const NegativeSampler& sampler, int64_t min_live, int64_t first_step,
                int64_t updates, const std::vector<at::Tensor>& hidden, const Adagrad& optimizer, int64_t n_tiles,
                const std::function<void()>& poll, const PhaseListener& on_phase, const ProcessShare* share) override {
    const BusyGuard guard(*this);
    on_phase_ = on_phase ? &on_phase : nullptr;
    share_ = share;
    const Lanes own = own_lanes(batcher);
    TORCH_CHECK_VALUE(0 <= own.first && 0 < own.n && own.first + own.n <= batcher.n_lanes(), "lanes [", own.first, ", ",
                      own.first + own.n, "): must be a part of the ", batcher.n_lanes(), " lanes, and not empty");
    states_ = state_pointers(hidden, own.n);
    set_tiles(n_tiles, steps_ * accumulate_);
    const NegativeDraws draws = make_negative_draws(sampler, output_.n_items());
    const AdagradOptions<T> options = adagrad_options(optimizer);
    RunRecord record{/*blocks=*/{}, /*finished=*/false};
    PollTimer timer;
    for (int64_t i = 0; i < updates && !record.finished; ++i) {
      const size_t n_blocks = record.blocks.size();
      try {
        if (!run_update(batcher, draws, sampler, min_live, first_step, options, record)) return record;
      } catch (const std::exception& error) {
        if (!is_out_of_memory(error)) throw;
        batcher.read_state();
        restore_states(own.n);
        release_memory();
        if (i == 0) throw;
        record.blocks.resize(n_blocks), record.finished = false;
        return record;
      }
      batcher.write_state();
      if (poll && timer.is_due()) poll();
    }
    return record;
  }

 private:
  // Makes one update by the next blocks. Appends their results to `record` and advances `first_step`. Returns false if
  // the loss is infinite or NaN.
  bool run_update(SessionBatcher& batcher, const NegativeDraws& draws, const NegativeSampler& sampler, int64_t min_live,
                  int64_t& first_step, const AdagradOptions<T>& options, RunRecord& record) {
    save_states(own_lanes(batcher).n);
    clear_gradients();
    const size_t first_block = record.blocks.size();
    int64_t pending = 0;  // number of blocks whose gradients are computed but not applied
    while (pending < accumulate_ && !record.finished) {
      const Block block = next_block(batcher, draws, sampler, min_live, first_step);
      record.finished = block.range.steps < steps_;
      if (block.range.steps == 0) break;
      record.blocks.push_back(
          {forward_backward(block, 1.0 / static_cast<double>(accumulate_)), block.range.steps, block.n_events()});
      if (share_ == nullptr && !std::isfinite(record.blocks.back().loss)) return false;
      compute_gradients(block, pending++ > 0);
      first_step += block.range.steps;
    }
    if (pending == 0) return true;
    // Each block's loss was divided by accumulate_. At the end of the epoch there may be fewer blocks.
    if (pending < accumulate_) scale_gradients(static_cast<T>(accumulate_) / static_cast<T>(pending));
    if (share_ != nullptr) {
      sum_over_processes(record.blocks.data() + first_block, static_cast<int64_t>(record.blocks.size() - first_block));
      for (size_t i = first_block; i < record.blocks.size(); ++i) {
        if (!std::isfinite(record.blocks[i].loss)) {
          record.blocks.resize(i + 1);
          return false;
        }
      }
    }
    update(options);
    return true;
  }

  // Replaces losses and gradients by their sums over all processes. All processes call this for every update, with the
  // same rows: those that the lanes of all processes read.
  void sum_over_processes(BlockRecord* blocks, int64_t n_blocks) {
    begin_phase("exchange");
    // After the exchange, other processes update their weights. So an error here must not lead to a second attempt.
    n_begun_.fetch_add(1, std::memory_order_relaxed);
    change_weights([&] {
      const bool separate = network_.embedding.defined();
      const int64_t n_input_rows = separate ? unique_rows(input_rows_, embedding_.n_rows) : 0;
      const int64_t n_bias_rows = unique_rows(column_rows_, output_.n_items());
      weight_rows_.assign(column_rows_.begin(), column_rows_.end());
      if (!separate) weight_rows_.insert(weight_rows_.end(), input_rows_.begin(), input_rows_.end());
      const int64_t n_weight_rows = unique_rows(weight_rows_, output_.n_items());
      int64_t n_dense = 0;
      stack_.for_each_gradient([&](const T*, int64_t size) { n_dense += size; });
      const int64_t width = output_.width(), input_width = embedding_.width;
      const at::Tensor sums =
          at::zeros({n_blocks + n_dense + n_weight_rows * width + n_bias_rows + n_input_rows * input_width},
                    at::TensorOptions().dtype(c10::CppTypeToScalarType<T>::value));
      T* const losses = sums.mutable_data_ptr<T>();
      T *const dense = losses + n_blocks, *const weight = dense + n_dense, *const bias = weight + n_weight_rows * width,
               *const inputs = bias + n_bias_rows;
      for (int64_t i = 0; i < n_blocks; ++i) losses[i] = static_cast<T>(blocks[i].loss);
      T* position = dense;
      stack_.for_each_gradient([&](const T* grad, int64_t size) { position = std::copy_n(grad, size, position); });
      output_.stored_weight().add_to(weight_rows_.data(), n_weight_rows, width, weight);
      output_.stored_bias().add_to(column_rows_.data(), n_bias_rows, /*width=*/1, bias);
      if (separate) grad_embedding_.add_to(input_rows_.data(), n_input_rows, input_width, inputs);

      share_->sum(sums);

      for (int64_t i = 0; i < n_blocks; ++i) blocks[i].loss = losses[i];
      const T* sum = dense;
      stack_.for_each_gradient([&](T* grad, int64_t size) {
        std::copy_n(sum, size, grad);
        sum += size;
      });
      output_.stored_weight().assign(weight_rows_.data(), n_weight_rows, width, weight);
      output_.stored_bias().assign(column_rows_.data(), n_bias_rows, /*width=*/1, bias);
      output_.reserve_for_apply();
      if (separate) {
        grad_embedding_.assign(input_rows_.data(), n_input_rows, input_width, inputs);
        grad_embedding_.reserve_for_apply();
      }
    });
  }

  // Sorts rows and removes duplicates and -1, in place. Returns how many are left.
  static int64_t unique_rows(Vector<int64_t>& rows, int64_t n_rows) {
    rows.erase(std::remove(rows.begin(), rows.end(), int64_t{-1}), rows.end());
    const int64_t n = static_cast<int64_t>(rows.size());
    Vector<int64_t> buffer(static_cast<size_t>(2 * n));
    const int64_t* sorted = sort_rows(rows.data(), n, n_rows, buffer.data(), buffer.data() + n);
    rows.erase(std::unique_copy(sorted, sorted + n, rows.begin()), rows.end());
    return static_cast<int64_t>(rows.size());
  }

  // Returns the lanes that this process computes.
  Lanes own_lanes(const SessionBatcher& batcher) const {
    return share_ == nullptr ? Lanes{0, batcher.n_lanes()} : share_->lanes;
  }

  void set_tiles(int64_t n_tiles, int64_t steps_per_update) {
    TORCH_CHECK_VALUE(n_tiles > 0, "n_tiles=", n_tiles, ": must be positive");
    output_.set_tiles(n_tiles);
    single_step_ = steps_per_update == 1 && n_tiles == 1 && share_ == nullptr;
  }

  // Copies the hidden states, for restore_states. Nothing is done with one block per update in one process, since then
  // the states are written after all allocations.
  void save_states(int64_t lanes) {
    if (accumulate_ == 1 && share_ == nullptr) return;
    int64_t width = 0;
    for (size_t layer = 0; layer < states_.size(); ++layer) width += state_width(layer);
    T* copy = saved_states_.reserve(lanes * width);
    for (size_t layer = 0; layer < states_.size(); ++layer) {
      copy = std::copy_n(states_[layer], lanes * state_width(layer), copy);
    }
  }

  // Restores the hidden states that save_states has copied, if any.
  void restore_states(int64_t lanes) {
    const T* copy = saved_states_.data();
    if (copy == nullptr) return;
    for (size_t layer = 0; layer < states_.size(); ++layer) {
      const int64_t size = lanes * state_width(layer);
      std::copy_n(copy, size, states_[layer]);
      copy += size;
    }
  }

  int64_t state_width(size_t layer) const { return network_.layers[layer].weight_hh.weight.size(1); }

  // Frees all memory that this object can allocate again.
  void release_memory() {
    stack_.release_memory();
    output_.release_memory();
    release(grad_embedding_, events_, negatives_, reset_, x_, masks_, grad_hidden_, saved_states_, own_events_,
            own_reset_, input_rows_, column_rows_, weight_rows_);
  }

  void begin_phase(const char* name) const {
    if (on_phase_ != nullptr) (*on_phase_)(name);
  }

  static AdagradOptions<T> adagrad_options(const Adagrad& optimizer) {
    return {static_cast<T>(optimizer.lr), static_cast<T>(optimizer.momentum), static_cast<T>(optimizer.eps)};
  }

  // Checks the hidden states and returns their data pointers.
  std::vector<T*> state_pointers(const std::vector<at::Tensor>& hidden, int64_t lanes) const {
    TORCH_CHECK_VALUE(hidden.size() == network_.layers.size(), "hidden must hold one state per layer, ",
                      network_.layers.size(), ", not ", hidden.size());
    std::vector<T*> pointers;
    for (size_t layer = 0; layer < hidden.size(); ++layer) {
      const at::Tensor state =
          contiguous(hidden[layer], "hidden", {lanes, state_width(layer)}, c10::CppTypeToScalarType<T>::value);
      TORCH_CHECK_VALUE(state.is_same(hidden[layer]), "hidden must be contiguous, since it is updated in place");
      pointers.push_back(state.template mutable_data_ptr<T>());
    }
    return pointers;
  }

  // Returns the next T steps and their negatives. The block ends before the first step with fewer than `min_live` live
  // lanes.
  Block next_block(SessionBatcher& batcher, NegativeDraws draws, const NegativeSampler& sampler, int64_t min_live,
                   int64_t first_step) {
    begin_phase("batch");
    const int64_t lanes = batcher.n_lanes(), rows = steps_ * lanes;
    int64_t *inputs = events_.reserve(2 * rows), *targets = inputs + rows;
    bool* reset = reset_.reserve(rows);
    batcher.make_steps(steps_, inputs, targets, reset);
    check_events({{steps_, lanes, first_step}, inputs, targets, reset, /*negatives=*/nullptr, /*n=*/0},
                 output_.n_items());
    int64_t steps = 0;
    while (steps < steps_ &&
           lanes - std::count(targets + steps * lanes, targets + (steps + 1) * lanes, int64_t{-1}) >= min_live) {
      ++steps;
    }
    int64_t* negatives = negatives_.reserve(steps * sampler.n);
    Block block{{steps, lanes, first_step}, inputs, targets, reset, negatives, sampler.n};
    check_counters(sampler.seed, first_step, steps);
    draws.steps = steps;
    draws.first_step = static_cast<uint32_t>(first_step);
    draws.items = negatives;
    if (sampler.n > 0) draw_negatives(draws);
    if (share_ == nullptr) return block;
    input_rows_.insert(input_rows_.end(), inputs, inputs + block.range.rows());
    column_rows_.insert(column_rows_.end(), targets, targets + block.range.rows());
    column_rows_.insert(column_rows_.end(), negatives, negatives + steps * sampler.n);
    return own_part(block);
  }

  // Returns the part of a block that this process computes.
  Block own_part(const Block& block) {
    const Lanes own = share_->lanes;
    const int64_t steps = block.range.steps, lanes = block.range.lanes, n_others = lanes - own.n;
    int64_t *inputs = own_events_.reserve(steps * (lanes + own.n)), *targets = inputs + steps * own.n,
            *others = targets + steps * own.n;
    bool* reset = own_reset_.reserve(steps * own.n);
    for (int64_t t = 0; t < steps; ++t) {
      const int64_t begin = t * lanes, first = begin + own.first, last = first + own.n;
      std::copy_n(block.inputs + first, own.n, inputs + t * own.n);
      std::copy_n(block.targets + first, own.n, targets + t * own.n);
      std::copy_n(block.reset + first, own.n, reset + t * own.n);
      int64_t* other = std::copy(block.targets + begin, block.targets + first, others + t * n_others);
      std::copy(block.targets + last, block.targets + begin + lanes, other);
    }
    const StepRange range{steps, own.n, block.range.first, own.first};
    return {range, inputs, targets, reset, block.negatives, block.n, others, n_others};
  }

  // Runs forward and backward, without the gradients of the parameters, which compute_gradients and `update` compute.
  // Returns the block's loss, the mean over its steps. The gradients are gradients of this loss times `loss_scale`.
  double forward_backward(const Block& block, double loss_scale) {
    begin_phase("forward");
    const StepRange& range = block.range;
    const int64_t rows = range.rows(), width = embedding_.width;
    T *x = x_.reserve(rows * width), *grad = grad_hidden_.reserve(rows * output_.width());
    mask_ = nullptr;
    if (network_.dropout_p_embed > 0 && !network_.one_hot) {
      mask_ = masks_.reserve(rows * width);
      fill_mask(range, width, network_.dropout_p_embed, network_.dropout_seed, philox::kStreamEmbeddingDropout, mask_);
    }
    stack_.prepare(range, x, states_, block.reset);
    loss_scale /= static_cast<double>(range.steps);
    if (!splits_lanes(block)) return forward_backward_all_lanes(block, loss_scale, x, grad);
    begin_phase("loss");
    output_.prepare(stack_.output(), block.targets, range.lanes, block.negatives, block.n, loss_scale);
    begin_phase("forward, loss and backward");  // each thread runs all three, and allocates nothing
    at::parallel_for(0, range.lanes, kMinLanesPerThread, [&](int64_t begin, int64_t end) {
      const Lanes lanes{begin, end - begin};
      forward(block, lanes, x);
      output_.score_lanes(lanes.first, lanes.n, grad);
      backward(block, lanes, grad);
    });
    return output_.loss();
  }

  // The part of forward_backward for blocks whose lanes are not split among threads.
  double forward_backward_all_lanes(const Block& block, double loss_scale, T* x, T* grad) {
    const StepRange& range = block.range;
    const Lanes all{0, range.lanes};
    forward(block, all, x);
    begin_phase("loss");
    const int64_t n_others = share_ != nullptr && share_->independent ? 0 : block.n_others;
    double sum = 0;
    for (int64_t t = 0; t < range.steps; ++t) {
      const int64_t row = t * range.lanes, width = output_.width();
      sum += output_.score(stack_.output() + row * width, block.targets + row, range.lanes,
                           block.other_targets + t * block.n_others, n_others, block.negatives + t * block.n, block.n,
                           loss_scale, grad + row * width, !single_step_);
    }
    begin_phase("backward");
    backward(block, all, grad);
    return static_cast<T>(sum / static_cast<double>(range.steps));
  }

  // Returns whether each thread runs all of forward and backward for some of the lanes. This takes one parallel region
  // instead of ten. Each thread then reads the output rows of all targets and negatives, so these must fit into its
  // cache. The matrix products must be our own (AVX-512), whose bits do not depend on how a product is split. No lane
  // may be dead. The precision must be `full`, because with bf16 each thread would round all output rows again.
  bool splits_lanes(const Block& block) const {
    const int64_t lanes = block.range.lanes, elements = (lanes + block.n) * output_.width();
    return block.range.steps == 1 && single_step_ && lanes / at::get_num_threads() >= kMinLanesPerThread &&
           elements * static_cast<int64_t>(sizeof(T)) <= kCacheBytes && simd_level() == SimdLevel::avx512 &&
           output_.precision() == Precision::full && std::count(block.targets, block.targets + lanes, int64_t{-1}) == 0;
  }

  // Computes the last layer's outputs from the inputs, for some lanes.
  void forward(const Block& block, const Lanes& lanes, T* x) {
    const int64_t rows = block.range.steps * lanes.n, width = embedding_.width, offset = lanes.first * width;
    gather_rows(embedding_.weight, width, block.inputs + lanes.first, rows, x + offset);
    if (mask_ != nullptr) multiply_in_place(mask_ + offset, rows * width, x + offset);
    stack_.forward(lanes);
  }

  // Computes the gradient of the embeddings from the gradient of the last layer's outputs, for some lanes.
  void backward(const Block& block, const Lanes& lanes, const T* grad) {
    const int64_t rows = block.range.steps * lanes.n, width = embedding_.width, offset = lanes.first * width;
    stack_.backward(lanes, grad);
    if (mask_ != nullptr) multiply_in_place(mask_ + offset, rows * width, stack_.grad_x() + offset);
  }

  // Computes the gradients of the parameters or, with `add`, adds to them. Allocates all memory that `update` needs,
  // and then writes the states, so that nothing has changed if an allocation fails. With single_step_, `update` instead
  // computes the gradients of the GRU and of the negatives' output rows, and writes the states.
  void compute_gradients(const Block& block, bool add) {
    const int64_t rows = block.range.rows();
    const bool separate = network_.embedding.defined();
    if (separate) {
      grad_embedding_.append_live(block.inputs, rows, embedding_.width, stack_.grad_x());
      grad_embedding_.reserve_for_apply();
    }
    if (single_step_) {
      output_.prepare_update(block.inputs, /*n=*/separate ? 0 : rows, stack_.grad_x());
      return;
    }
    stack_.compute_gradients(add);
    if (!separate) output_.store_input_gradient(block.inputs, rows, stack_.grad_x());
    output_.reserve_for_apply();
    stack_.write_states();
  }

  // Updates the parameters. compute_gradients must have run for all blocks of the update.
  void update(const AdagradOptions<T>& options) {
    begin_phase("update");
    if (share_ == nullptr) n_begun_.fetch_add(1, std::memory_order_relaxed);  // otherwise counted by the exchange
    change_weights([&] {
      if (single_step_) {
        stack_.compute_gradients_and_update(options);
        stack_.write_states();
      } else {
        stack_.update(options);
      }
      if (network_.embedding.defined()) grad_embedding_.apply(embedding_, options);
      if (single_step_) {
        output_.update(options);
      } else {
        output_.apply_stored(options);
      }
    });
  }

  // Clears stored gradients, which an update that did not finish may have left.
  void clear_gradients() {
    output_.clear_gradients();
    grad_embedding_.clear();
    input_rows_.clear(), column_rows_.clear();
  }

  void scale_gradients(T factor) {
    stack_.scale_gradients(factor);
    output_.scale_gradients(factor);
    grad_embedding_.scale(factor);
  }

  NetworkParameters network_;  // keeps the tensors alive
  GruStack<T> stack_;
  OutputTable<T> output_;
  RowTable<T> embedding_;
  int64_t steps_, accumulate_;

  bool single_step_ = false;  // true for updates of one step, tile and process: most gradients are not stored
  const PhaseListener* on_phase_ = nullptr;  // of the current call; null if nobody listens
  const ProcessShare* share_ = nullptr;      // of the current call; null if this process trains alone
  std::vector<T*> states_;
  T* mask_ = nullptr;  // the dropout mask of the embeddings in masks_, or null
  RowGradients<T> grad_embedding_;
  Buffer<int64_t> events_, negatives_;
  Buffer<bool> reset_;
  // With several processes: this process's part of a block, and the rows that all lanes of the update read: of the
  // embedding as inputs, of the output table as columns of the scores, and both if they are one table.
  Buffer<int64_t> own_events_;
  Buffer<bool> own_reset_;
  Vector<int64_t> input_rows_, column_rows_, weight_rows_;
  Buffer<T> x_, masks_, grad_hidden_, saved_states_;
};

}  // namespace

std::unique_ptr<FusedTrainingStep> FusedTrainingStep::make(const NetworkParameters& network,
                                                           const ScoreOptions& options, const at::Tensor& log_support,
                                                           int64_t steps, int64_t accumulate) {
  const auto dtype = network.output_weight.weight.scalar_type();
  check_kernel_dtype("FusedTrainingStep", dtype);
  if (dtype == at::kDouble) return std::make_unique<StepImpl<double>>(network, options, log_support, steps, accumulate);
  return std::make_unique<StepImpl<float>>(network, options, log_support, steps, accumulate);
}

}  // namespace grf
