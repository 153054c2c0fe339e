// Draws of negative items from an alias table, on CUDA. Specification: gru4rec_fast/ops/negative_sampling.py.
#include "common/philox.h"
#include "common/simt.cuh"
#include "negative_sampling/negative_sampling.h"

namespace grf::cuda {

constexpr int kNegativeThreads = 256;

// Draws items and writes their log-probabilities.
//
// Launch: one dimension, any number of blocks of kNegativeThreads; threads loop over draws. Bytes per draw: random
// reads of threshold, alias and log-probability, a 32-byte sector each, and 12 bytes written, coalesced. 50 steps of
// 2048 draws: 11 MB, 2.3 us at the H200's 4.8 TB/s (estimated). Bottleneck: the random reads if the table (20 bytes per
// item) exceeds the L2 cache; for a single step, the launch itself.
__global__ void __launch_bounds__(kNegativeThreads) draw_negatives_kernel(NegativeDraws draws) {
  const int64_t total = draws.steps * draws.n;
  const auto n_items = static_cast<uint32_t>(draws.n_items);
  const uint32_t first_step = first_step_word(draws.first_step, draws.counter, draws.steps);
  for (int64_t i = global_thread(); i < total; i += all_threads()) {
    const int64_t t = quotient(i, draws.n);
    const auto words = philox::philox4x32(
        {philox::kStreamNegatives, first_step + static_cast<uint32_t>(t), static_cast<uint32_t>(i - t * draws.n), 0},
        draws.seed);
    const uint64_t high = static_cast<uint64_t>(words.w0) * n_items;
    const uint64_t low = static_cast<uint64_t>(words.w1) * n_items;
    const auto column = static_cast<int64_t>((high + (low >> 32)) >> 32);
    const int64_t item = (words.w2 >> 1) < draws.threshold[column] ? column : draws.alias[column];
    GRF_DEVICE_CHECK(item >= 0 && item < draws.n_items, "alias: holds numbers outside [0, n_items)");
    draws.items[i] = item;
    draws.log_prob[i] = draws.table_log_prob[item];
  }
}

void draw_negatives(const NegativeDraws& draws, cudaStream_t stream) {
  const int64_t total = draws.steps * draws.n;
  if (total == 0) return;
  GRF_LAUNCH(draw_negatives_kernel, blocks_for(total, kNegativeThreads), kNegativeThreads, 0, stream, draws);
}

}  // namespace grf::cuda
