// Masks of inverted dropout on CUDA, from counter-based random numbers (Philox). Specification:
// gru4rec_fast/ops/dropout.py.
#include "common/philox.h"
#include "common/simt.cuh"
#include "dropout/dropout.h"

namespace grf::cuda {

constexpr int kDropoutThreads = 256;

// Fills a mask, out [steps, lanes, units]; a lane is a session of the mini-batch. Each element is keep_bits, the bits
// of 1 / (1 - p), or 0.
//
// Launch: one dimension, any number of blocks of kDropoutThreads; threads loop over elements in strides of
// all_threads(), the number of threads in the grid. Bytes: every element is written once, coalesced. 50 steps x 512
// lanes x 512 units of float32: 52 MB, 11 us at the H200's 4.8 TB/s. Bottleneck: ten rounds of Philox per element, some
// 80 integer instructions: about 60 us (both times are estimated).
template <typename bits_t>
__global__ void __launch_bounds__(kDropoutThreads) dropout_mask_kernel(DropoutMask mask, bits_t* __restrict__ out) {
  const int64_t n = mask.steps * mask.lanes * mask.units;
  const uint32_t first_step = first_step_word(mask.first_step, mask.counter, mask.steps);
  for (int64_t i = global_thread(); i < n; i += all_threads()) {
    const int64_t row = quotient(i, mask.units), step = quotient(row, mask.lanes);
    const philox::Words philox_counter{mask.philox_stream, first_step + static_cast<uint32_t>(step),
                                       static_cast<uint32_t>(row - step * mask.lanes),
                                       static_cast<uint32_t>(i - row * mask.units)};
    const uint32_t word = philox::philox4x32(philox_counter, mask.seed).w0;
    out[i] = word >= mask.threshold ? static_cast<bits_t>(mask.keep_bits) : bits_t{0};
  }
}

namespace {

template <typename bits_t>
void fill(const DropoutMask& mask, void* out, cudaStream_t stream) {
  const int64_t n = mask.steps * mask.lanes * mask.units;
  GRF_LAUNCH((dropout_mask_kernel<bits_t>), blocks_for(n, kDropoutThreads), kDropoutThreads, 0, stream, mask,
             static_cast<bits_t*>(out));
}

}  // namespace

void fill_dropout_mask(const DropoutMask& mask, void* out, cudaStream_t stream) {
  if (mask.steps == 0 || mask.lanes == 0 || mask.units == 0) return;
  switch (mask.element_bytes) {
    case 2:
      return fill<uint16_t>(mask, out, stream);
    case 4:
      return fill<uint32_t>(mask, out, stream);
    default:
      return fill<uint64_t>(mask, out, stream);
  }
}

}  // namespace grf::cuda
