// Counter-based dropout masks on CUDA. Specification: gru4rec_fast/reference/dropout.py.
#include "dropout/cuda.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>

#include <cmath>
#include <cstring>

#include "common/checks.h"
#include "common/device.h"

namespace grf::cuda {
namespace {

at::Tensor dropout_mask(int64_t steps, int64_t lanes, int64_t units, double p, int64_t seed, int64_t stream,
                        int64_t step, at::ScalarType dtype, at::Device device) {
  check_mask(steps, lanes, units, p, seed, stream, step);
  TORCH_CHECK_VALUE(dtype == at::kFloat || dtype == at::kDouble || dtype == at::kHalf || dtype == at::kBFloat16,
                    "dtype=", dtype, ": choose one of float32, float64, float16, bfloat16");
  const DeviceGuard guard(device);
  const at::Tensor out = at::empty({steps, lanes, units}, at::TensorOptions().dtype(dtype).device(device));
  const at::Tensor scale = at::full({}, 1.0 / (1.0 - p), at::TensorOptions().dtype(dtype));  // rounded as torch does
  uint64_t kept = 0;
  std::memcpy(&kept, scale.const_data_ptr(), scale.element_size());
  const DropoutMask mask{steps,
                         lanes,
                         units,
                         static_cast<uint32_t>(stream),
                         static_cast<uint32_t>(step),
                         static_cast<uint64_t>(seed),
                         static_cast<uint32_t>(std::floor(p * 4294967296.0)),
                         kept,
                         static_cast<int>(out.element_size())};
  fill_dropout_mask(mask, out.mutable_data_ptr(), current_stream(out.device()));
  return out;
}

GRF_DEVICE_IMPL(m) {
  m.impl("dropout_mask", &dropout_mask);
}

}  // namespace
}  // namespace grf::cuda
