#include "training_step/fused_training_step.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <chrono>
#include <cmath>

#include "common/checks.h"
#include "common/operator.h"
#include "common/philox.h"
#include "common/rows.h"
#include "common/simd.h"

namespace grf {
namespace {

constexpr int64_t kLanesWorthAThread = 16;         // fewer do not fill the tiles of a product
constexpr int64_t kCacheBytes = int64_t{1} << 20;  // of one core

// T steps of B lanes as they were played or given.
struct Block {
  StepRange range;
  const int64_t *inputs, *targets;  // [T, B], -1 in dead lanes
  const bool* reset;                // [T, B]
  const int64_t* negatives;         // [T, n]
  int64_t n;

  int64_t n_events() const { return range.rows() - std::count(targets, targets + range.rows(), int64_t{-1}); }
};

void check_events(const Block& block, int64_t n_items) {
  for (int64_t i = 0; i < block.range.rows(); ++i) {
    const int64_t input = block.inputs[i], target = block.targets[i];
    const bool dead = input == -1 && target == -1 && !block.reset[i];
    TORCH_CHECK_VALUE(dead || (0 <= input && input < n_items && 0 <= target && target < n_items),
                      "items are no indices of a catalogue of ", n_items, " items (here ", input, " and ", target, ")");
  }
}

void check_negatives(const Block& block, int64_t n_items) {
  for (int64_t i = 0; i < block.range.steps * block.n; ++i) {
    TORCH_CHECK_VALUE(0 <= block.negatives[i] && block.negatives[i] < n_items, "negatives hold ", block.negatives[i],
                      ", the catalogue has ", n_items, " items");
  }
}

// Draws of no steps yet.
NegativeDraws draws_from(const NegativeSampler& source, int64_t n_items) {
  if (source.n == 0) return {};
  const auto check = [&](const at::Tensor& tensor, const char* name, at::ScalarType dtype) {
    TORCH_CHECK_VALUE(contiguous(tensor, name, {n_items}, dtype).is_same(tensor), name, ": must be contiguous");
  };
  check(source.threshold, "the sampler's threshold", at::kLong);
  check(source.alias, "the sampler's alias", at::kLong);
  check(source.log_prob, "the sampler's log_prob", at::kFloat);
  return {source.threshold.const_data_ptr<int64_t>(),
          source.alias.const_data_ptr<int64_t>(),
          source.log_prob.const_data_ptr<float>(),
          n_items,
          0,
          source.n,
          0,
          static_cast<uint64_t>(source.seed),
          nullptr,
          nullptr};
}

// Whether it is time to look at what goes on outside.
class Clock {
 public:
  bool is_time() {
    const auto now = std::chrono::steady_clock::now();
    if (now - last_ < std::chrono::milliseconds(50)) return false;
    last_ = now;
    return true;
  }

 private:
  std::chrono::steady_clock::time_point last_ = std::chrono::steady_clock::now();
};

template <typename T>
class Step final : public FusedTrainingStep {
 public:
  Step(const NetworkParts& network, const ScoreOptions& options, const at::Tensor& log_support, int64_t steps,
       int64_t accumulate)
      : network_(network),
        stack_(network.layers, network.dropout_p_hidden, network.dropout_seed, options.precision),
        output_(network.output_weight, network.output_bias, log_support, options),
        embedding_(network.embedding.defined() ? network.embedding.rows<T>("embedding.weight") : output_.weight()),
        steps_(steps),
        accumulate_(accumulate) {
    TORCH_CHECK_VALUE(embedding_.width == stack_.input_width(), "the first GRU layer takes ", stack_.input_width(),
                      " inputs, the embedding has ", embedding_.width);
    TORCH_CHECK_VALUE(output_.width() == stack_.output_width(), "output.weight must be as wide as the last layer, ",
                      stack_.output_width(), ", not ", output_.width());
    TORCH_CHECK_VALUE(steps > 0 && accumulate > 0, "steps=", steps, ", accumulate=", accumulate, ": must be positive");
  }

  double train_block(const at::Tensor& inputs, const at::Tensor& targets, const at::Tensor& reset,
                     const at::Tensor& negatives, int64_t first_step, const std::vector<at::Tensor>& hidden,
                     const Adagrad& optimizer) override {
    const BusyGuard guard(*this);
    TORCH_CHECK_VALUE(inputs.dim() == 2 && inputs.size(0) > 0, "inputs must be [T, B] with T > 0, not ",
                      inputs.sizes());
    TORCH_CHECK_VALUE(!negatives.defined() || negatives.dim() == 2, "negatives must be [T, N], not ",
                      negatives.sizes());
    check_counters(network_.dropout_seed, first_step, inputs.size(0));
    const auto shape = inputs.sizes();
    const at::Tensor in = contiguous(inputs, "inputs", shape, at::kLong);
    const at::Tensor out = contiguous(targets, "targets", shape, at::kLong);
    const at::Tensor starts = contiguous(reset, "reset", shape, at::kBool);
    const int64_t n = negatives.defined() ? negatives.size(1) : 0;
    const at::Tensor drawn =
        negatives.defined() ? contiguous(negatives, "negatives", {shape[0], n}, at::kLong) : at::empty({0}, at::kLong);
    const Block block{{shape[0], shape[1], first_step}, in.const_data_ptr<int64_t>(),    out.const_data_ptr<int64_t>(),
                      starts.const_data_ptr<bool>(),    drawn.const_data_ptr<int64_t>(), n};
    check_events(block, output_.n_items());
    check_negatives(block, output_.n_items());
    states_ = state_pointers(hidden, shape[1]);
    alone_ = shape[0] == 1;
    forget_gradients();
    const double loss = through_lanes(block, 1.0);
    if (!std::isfinite(loss)) return loss;
    take_gradients(block, false, options_of(optimizer));
    update(block, options_of(optimizer));
    return loss;
  }

  RunRecord run(SessionBatcher& player, const NegativeSampler& source, int64_t min_live, int64_t first_step,
                int64_t updates, const std::vector<at::Tensor>& hidden, const Adagrad& optimizer,
                const std::function<void()>& poll) override {
    const BusyGuard guard(*this);
    states_ = state_pointers(hidden, player.n_lanes());
    alone_ = steps_ * accumulate_ == 1;
    const NegativeDraws sampler = draws_from(source, output_.n_items());
    const AdagradOptions<T> options = options_of(optimizer);
    RunRecord record{{}, false};
    Clock clock;
    for (int64_t number = 0; number < updates && !record.finished; ++number) {
      Block block{};
      forget_gradients();
      int64_t pending = 0;  // blocks whose gradients wait for the update
      while (pending < accumulate_ && !record.finished) {
        const Block next = play(player, sampler, source, min_live, first_step);
        record.finished = next.range.steps < steps_;
        if (next.range.steps == 0) break;
        block = next;
        record.blocks.push_back(
            {through_lanes(block, 1.0 / static_cast<double>(accumulate_)), block.range.steps, block.n_events()});
        if (!std::isfinite(record.blocks.back().loss)) return record;
        take_gradients(block, pending++ > 0, options);
        first_step += block.range.steps;
      }
      if (pending > 0) {
        if (pending < accumulate_) scale_gradients(static_cast<T>(accumulate_) / static_cast<T>(pending));
        update(block, options);
      }
      player.write_state();
      if (poll && clock.is_time()) poll();
    }
    return record;
  }

 private:
  static AdagradOptions<T> options_of(const Adagrad& given) {
    return {static_cast<T>(given.lr), static_cast<T>(given.momentum), static_cast<T>(given.eps)};
  }

  std::vector<T*> state_pointers(const std::vector<at::Tensor>& hidden, int64_t lanes) const {
    TORCH_CHECK_VALUE(hidden.size() == network_.layers.size(), "hidden must hold one state per layer, ",
                      network_.layers.size(), ", not ", hidden.size());
    std::vector<T*> pointers;
    for (size_t layer = 0; layer < hidden.size(); ++layer) {
      const int64_t width = network_.layers[layer].weight_hh.weight.size(1);
      const at::Tensor state = contiguous(hidden[layer], "hidden", {lanes, width}, c10::CppTypeToScalarType<T>::value);
      TORCH_CHECK_VALUE(state.is_same(hidden[layer]), "hidden must be contiguous: it is updated in place");
      pointers.push_back(state.template mutable_data_ptr<T>());
    }
    return pointers;
  }

  // The next T steps, or those of them with enough live lanes, and their negatives.
  Block play(SessionBatcher& player, NegativeDraws sampler, const NegativeSampler& source, int64_t min_live,
             int64_t first_step) {
    const int64_t lanes = player.n_lanes(), rows = steps_ * lanes;
    int64_t *inputs = events_.room(2 * rows), *targets = inputs + rows;
    bool* reset = reset_.room(rows);
    player.make_steps(steps_, inputs, targets, reset);
    check_events({{steps_, lanes, first_step}, inputs, targets, reset, nullptr, 0}, output_.n_items());
    int64_t steps = 0;
    while (steps < steps_ &&
           lanes - std::count(targets + steps * lanes, targets + (steps + 1) * lanes, int64_t{-1}) >= min_live) {
      ++steps;
    }
    int64_t* negatives = negatives_.room(steps * source.n);
    const Block block{{steps, lanes, first_step}, inputs, targets, reset, negatives, source.n};
    check_counters(source.seed, first_step, steps);
    sampler.steps = steps;
    sampler.first_step = static_cast<uint32_t>(first_step);
    sampler.items = negatives;
    if (source.n > 0) draw_negatives(sampler);
    return block;
  }

  // The block's loss, the mean over its steps, and the gradients of all that goes lane by lane; `share`: of the
  // update's loss.
  double through_lanes(const Block& block, double share) {
    const StepRange& range = block.range;
    const int64_t rows = range.rows(), width = embedding_.width;
    T *x = x_.room(rows * width), *grad = grad_hidden_.room(rows * output_.width());
    mask_ = nullptr;
    if (network_.dropout_p_embed > 0 && !network_.one_hot) {
      mask_ = masks_.room(rows * width);
      fill_mask(range, width, network_.dropout_p_embed, network_.dropout_seed, philox::kStreamEmbeddingDropout, mask_);
    }
    stack_.begin(range, x, states_, block.reset);
    share /= static_cast<double>(range.steps);
    if (!in_parts(block)) return through_all_lanes(block, share, x, grad);
    output_.begin(stack_.output(), block.targets, range.lanes, block.negatives, block.n, share);
    at::parallel_for(0, range.lanes, kLanesWorthAThread, [&](int64_t begin, int64_t end) {
      const Lanes lanes{begin, end - begin};
      enter(block, lanes, x);
      output_.score_lanes(lanes.first, lanes.n, grad);
      leave(block, lanes, grad);
    });
    return output_.loss();
  }

  double through_all_lanes(const Block& block, double share, T* x, T* grad) {
    const StepRange& range = block.range;
    const Lanes all{0, range.lanes};
    enter(block, all, x);
    double sum = 0;
    for (int64_t t = 0; t < range.steps; ++t) {
      const int64_t at = t * range.lanes, out = output_.width();
      sum += output_.score(stack_.output() + at * out, block.targets + at, range.lanes, block.negatives + t * block.n,
                           block.n, share, grad + at * out);
      if (!alone_ && std::isfinite(sum)) output_.keep_gradient();
    }
    leave(block, all, grad);
    return static_cast<T>(sum / static_cast<double>(range.steps));
  }

  // Whether each thread takes a part of the lanes all the way, in one parallel region instead of ten: where all
  // columns' rows fit its cache, since it reads them all. Only by products of our own, whose bits do not depend on how
  // they are cut; those in bf16 round the rows, which each thread would do for itself.
  bool in_parts(const Block& block) const {
    const int64_t lanes = block.range.lanes, numbers = (lanes + block.n) * output_.width();
    return block.range.steps == 1 && alone_ && lanes / at::get_num_threads() >= kLanesWorthAThread &&
           numbers * static_cast<int64_t>(sizeof(T)) <= kCacheBytes && simd_level() == SimdLevel::avx512 &&
           output_.precision() == Precision::full && std::count(block.targets, block.targets + lanes, int64_t{-1}) == 0;
  }

  // From the events to the hidden states, and back from their gradient.
  void enter(const Block& block, const Lanes& lanes, T* x) {
    const int64_t rows = block.range.steps * lanes.n, width = embedding_.width, at = lanes.first * width;
    gather_rows(embedding_.weight, width, block.inputs + lanes.first, rows, x + at);
    if (mask_ != nullptr) multiply_by(mask_ + at, rows * width, x + at);
    stack_.forward(lanes);
  }

  void leave(const Block& block, const Lanes& lanes, const T* grad) {
    const int64_t rows = block.range.steps * lanes.n, width = embedding_.width, at = lanes.first * width;
    stack_.backward(lanes, grad);
    if (mask_ != nullptr) multiply_by(mask_ + at, rows * width, stack_.grad_x() + at);
  }

  // Gradients of the parameters, kept or, with `add`, added to those kept. Where an update is made from one step alone,
  // the GRU's move here, and the output table's gradient is left to the update.
  void take_gradients(const Block& block, bool add, const AdagradOptions<T>& options) {
    const int64_t rows = block.range.rows(), width = embedding_.width;
    if (alone_) {
      stack_.take_gradients_and_update(options);
    } else {
      stack_.take_gradients(add);
    }
    stack_.write_states();
    if (network_.embedding.defined()) {
      grad_embedding_.append_live(block.inputs, rows, width, stack_.grad_x());
    } else if (!alone_) {
      output_.keep_input_gradient(block.inputs, rows, stack_.grad_x());
    }
  }

  // Moves the parameters that did not yet; `block` is the last one.
  void update(const Block& block, const AdagradOptions<T>& options) {
    if (!alone_) stack_.update(options);
    if (network_.embedding.defined()) grad_embedding_.apply(embedding_, options);
    if (!alone_) {
      output_.apply(options);
    } else if (network_.embedding.defined()) {
      output_.update(nullptr, 0, nullptr, options);
    } else {
      output_.update(block.inputs, block.range.rows(), stack_.grad_x(), options);
    }
  }

  // Those kept: an update that did not come about leaves some behind.
  void forget_gradients() {
    output_.forget_gradients();
    grad_embedding_.forget();
  }

  void scale_gradients(T factor) {
    stack_.scale_gradients(factor);
    output_.scale_gradients(factor);
    grad_embedding_.scale(factor);
  }

  NetworkParts network_;  // keeps the tensors alive
  GruStack<T> stack_;
  OutputTable<T> output_;
  RowTable<T> embedding_;
  int64_t steps_, accumulate_;

  bool alone_ = false;  // an update is made from one step alone: the table's gradients need not be kept
  std::vector<T*> states_;
  T* mask_ = nullptr;
  RowGradients<T> grad_embedding_;
  Buffer<int64_t> events_, negatives_;
  Buffer<bool> reset_;
  Buffer<T> x_, masks_, grad_hidden_;
};

}  // namespace

std::unique_ptr<FusedTrainingStep> FusedTrainingStep::make(const NetworkParts& network, const ScoreOptions& options,
                                                           const at::Tensor& log_support, int64_t steps,
                                                           int64_t accumulate) {
  const auto dtype = network.output_weight.weight.scalar_type();
  check_kernel_dtype("FusedTrainingStep", dtype);
  if (dtype == at::kDouble) return std::make_unique<Step<double>>(network, options, log_support, steps, accumulate);
  return std::make_unique<Step<float>>(network, options, log_support, steps, accumulate);
}

}  // namespace grf
