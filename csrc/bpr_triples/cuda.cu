// BPR triples on CUDA. Specification: gru4rec_fast/ops/bpr_triples.py.
#include "bpr_triples/draw.h"
#include "common/simt.cuh"

namespace grf::cuda {

constexpr int kTripleThreads = 128;

// Draws args.n triples; draw_triple draws triple k.
//
// Launch: one dimension, any number of blocks of kTripleThreads; threads loop over triples. Bytes per triple: some ten
// random reads of a 32-byte sector each, and 24 bytes written, coalesced. 2048 triples: 0.7 MB, 0.15 us at the H200's
// 4.8 TB/s. Bottleneck: the latency of the chain of dependent reads, about 5 us (estimated).
template <typename index_t>
__global__ void __launch_bounds__(kTripleThreads) draw_triples_kernel(TripleArguments args) {
  const uint32_t step = first_step_word(args.step, args.counter);
  for (int64_t k = global_thread(); k < args.n; k += all_threads()) {
    const bool valid = draw_triple<index_t>(args, step, k);  // here, since the macro may be defined as nothing
    GRF_DEVICE_CHECK(
        valid,
        "users and starts do not fit the graph: each user must have at least one item but not every item, "
        "a user's neighbors must be items, and starts must be the cumulative sum of the users' degrees, below 2**31");
  }
}

void draw_triples(const TripleArguments& args, cudaStream_t stream) {
  if (args.n == 0) return;
  const unsigned blocks = blocks_for(args.n, kTripleThreads);
  if (args.neighbors_are_int64) {
    GRF_LAUNCH((draw_triples_kernel<int64_t>), blocks, kTripleThreads, 0, stream, args);
  } else {
    GRF_LAUNCH((draw_triples_kernel<int32_t>), blocks, kTripleThreads, 0, stream, args);
  }
}

}  // namespace grf::cuda
