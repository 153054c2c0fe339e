// Triples for BPR on CUDA. Specification: gru4rec_fast/ops/bpr_triples.py.
#include "bpr_triples/draw.h"
#include "common/simt.cuh"

namespace grf::cuda {

constexpr int kTripleThreads = 128;

// Launch: one dimension, any number of blocks of any size; each thread takes triples in strides of the grid. A triple's
// reads are at random; it writes 24 bytes, each 8 beside its neighbors'.
template <typename index_t>
__global__ void __launch_bounds__(kTripleThreads) draw_triples_kernel(TripleDraws draws) {
  for (int64_t k = global_thread(); k < draws.n; k += all_threads()) {
    const bool fits = draw_triple<index_t>(draws, k);  // not within the check, which a build may leave out
    GRF_DEVICE_CHECK(fits,
                     "users and starts do not fit the graph: draw from users that have an item and have not all "
                     "items, starts being the running sum of their degrees, below 2**31");
  }
}

void draw_triples(const TripleDraws& draws, cudaStream_t stream) {
  if (draws.n == 0) return;
  const unsigned blocks = blocks_for(draws.n, kTripleThreads);
  if (draws.neighbors_are_wide) {
    GRF_LAUNCH((draw_triples_kernel<int64_t>), blocks, kTripleThreads, 0, stream, draws);
  } else {
    GRF_LAUNCH((draw_triples_kernel<int32_t>), blocks, kTripleThreads, 0, stream, draws);
  }
}

}  // namespace grf::cuda
