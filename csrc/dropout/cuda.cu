#include "dropout/cuda.cuh"

namespace grf::cuda {
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
