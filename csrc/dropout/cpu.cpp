// Counter-based dropout masks on the CPU. Specification: gru4rec_fast/reference/dropout.py.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>

#include "common/checks.h"
#include "common/philox.h"
#include "common/simd.h"
#include "dropout/cpu.h"

#if GRF_X86_ISAS
#include <immintrin.h>
#endif

#define GRF_KERNEL "dropout/cpu_kernel.inc"
#include "common/foreach_isa.h"

namespace grf {
namespace {

constexpr int64_t kWordRange = int64_t{1} << 32;

}  // namespace

template <typename bits_t>
void fill_dropout_mask(const DropoutMask& mask, bits_t kept, bits_t* out) {
  const auto fill_row = GRF_DISPATCH(dropout_row<bits_t>);
  const auto threshold = static_cast<uint32_t>(std::floor(mask.p * static_cast<double>(kWordRange)));
  const int64_t grain = std::max<int64_t>(1, 16384 / std::max<int64_t>(1, mask.units));  // rows worth a thread
  at::parallel_for(0, mask.steps * mask.lanes, grain, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      fill_row(out + row * mask.units, static_cast<uint32_t>(mask.units), static_cast<uint32_t>(mask.stream),
               static_cast<uint32_t>(mask.step + row / mask.lanes), static_cast<uint32_t>(row % mask.lanes),
               static_cast<uint64_t>(mask.seed), threshold, kept);
    }
  });
}

template void fill_dropout_mask<uint16_t>(const DropoutMask&, uint16_t, uint16_t*);
template void fill_dropout_mask<uint32_t>(const DropoutMask&, uint32_t, uint32_t*);
template void fill_dropout_mask<uint64_t>(const DropoutMask&, uint64_t, uint64_t*);

namespace {

template <typename bits_t>
void fill(const at::Tensor& tensor, const DropoutMask& mask, const at::Tensor& scale) {
  fill_dropout_mask(mask, *static_cast<const bits_t*>(scale.const_data_ptr()),
                    static_cast<bits_t*>(tensor.mutable_data_ptr()));
}

at::Tensor dropout_mask(int64_t steps, int64_t lanes, int64_t units, double p, int64_t seed, int64_t stream,
                        int64_t step, at::ScalarType dtype, at::Device device) {
  check_mask(steps, lanes, units, p, seed, stream, step);
  TORCH_CHECK_VALUE(dtype == at::kFloat || dtype == at::kDouble || dtype == at::kHalf || dtype == at::kBFloat16,
                    "dtype=", dtype, ": choose one of float32, float64, float16, bfloat16");

  const auto options = at::TensorOptions().dtype(dtype).device(device);
  const at::Tensor mask = at::empty({steps, lanes, units}, options);
  const at::Tensor scale = at::full({}, 1.0 / (1.0 - p), options);
  const DropoutMask params{steps, lanes, units, p, seed, stream, step};
  switch (mask.element_size()) {
    case 2:
      fill<uint16_t>(mask, params, scale);
      break;
    case 4:
      fill<uint32_t>(mask, params, scale);
      break;
    default:
      fill<uint64_t>(mask, params, scale);
  }
  return mask;
}

TORCH_LIBRARY_IMPL(gru4rec_fast, CPU, m) {
  m.impl("dropout_mask", &dropout_mask);
}

}  // namespace
}  // namespace grf
