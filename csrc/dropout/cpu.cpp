// Masks of inverted dropout on the CPU, from counter-based random numbers (Philox). Specification:
// gru4rec_fast/ops/dropout.py.
//
// Threads loop over rows; a row has the units of one lane (session of the mini-batch) at one step. Bottleneck: ten
// rounds of Philox per element.
#include "dropout/dropout.h"

#include <ATen/Parallel.h>

#include <algorithm>

#include "common/philox.h"
#include "common/simd.h"

#if GRF_X86_ISAS
#include <immintrin.h>
#endif

#define GRF_KERNEL "dropout/cpu_kernel.inc"
#include "common/foreach_isa.h"

namespace grf {
namespace {

template <typename bits_t>
void fill(const DropoutMask& mask, bits_t* out) {
  if (mask.units == 0) return;  // else there could be up to 2**64 empty rows
  const auto fill_row = GRF_DISPATCH(dropout_row<bits_t>);
  constexpr int64_t kMinUnits = 16384;  // per thread
  const int64_t grain = std::max<int64_t>(1, kMinUnits / std::max<int64_t>(1, mask.units));
  at::parallel_for(0, mask.steps * mask.lanes, grain, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      fill_row(out + row * mask.units, static_cast<uint32_t>(mask.units), mask.philox_stream,
               mask.first_step + static_cast<uint32_t>(row / mask.lanes),
               static_cast<uint32_t>(mask.first_lane + row % mask.lanes), mask.seed, mask.threshold,
               static_cast<bits_t>(mask.keep_bits));
    }
  });
}

}  // namespace

void fill_dropout_mask(const DropoutMask& mask, void* out) {
  switch (mask.element_bytes) {
    case 2:
      return fill(mask, static_cast<uint16_t*>(out));
    case 4:
      return fill(mask, static_cast<uint32_t*>(out));
    default:
      return fill(mask, static_cast<uint64_t*>(out));
  }
}

}  // namespace grf
