#include "negative_sampling/cuda.cuh"

namespace grf::cuda {

void draw_negatives(const NegativeDraws& draws, cudaStream_t stream) {
  const int64_t total = draws.steps * draws.n;
  if (total == 0) return;
  GRF_LAUNCH(draw_negatives_kernel, blocks_for(total, kNegativeThreads), kNegativeThreads, 0, stream, draws);
}

}  // namespace grf::cuda
