#include "bpr_triples/cuda.cuh"

namespace grf::cuda {

void draw_triples(const TripleDraws& draws, cudaStream_t stream) {
  if (draws.n == 0) return;
  const unsigned blocks = blocks_for(draws.n, kTripleThreads);
  if (draws.neighbours_are_wide) {
    GRF_LAUNCH((draw_triples_kernel<int64_t>), blocks, kTripleThreads, 0, stream, draws);
  } else {
    GRF_LAUNCH((draw_triples_kernel<int32_t>), blocks, kTripleThreads, 0, stream, draws);
  }
}

}  // namespace grf::cuda
