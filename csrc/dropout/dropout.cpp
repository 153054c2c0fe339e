// The operator dropout_mask: checks arguments and allocates the result. Specification: gru4rec_fast/ops/dropout.py.
#include "dropout/dropout.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>

#include <cstring>

#include "common/checks.h"
#include "common/device.h"
#include "common/operator.h"
#include "common/philox.h"

namespace grf {
namespace {

template <Kernels kernels>
at::Tensor dropout_mask(int64_t steps, int64_t lanes, int64_t units, double p, int64_t seed, int64_t stream,
                        int64_t step, const std::optional<at::Tensor>& counter, at::ScalarType dtype,
                        at::Device device) {
  check_dropout_mask(steps, lanes, units, p, seed, stream, step);
  TORCH_CHECK_VALUE(dtype == at::kFloat || dtype == at::kDouble || dtype == at::kHalf || dtype == at::kBFloat16,
                    "dtype=", dtype, ": choose one of float32, float64, float16, bfloat16");
  check_n_elements("steps * lanes * units", {steps, lanes, units});
  const at::Tensor out = at::empty({steps, lanes, units}, at::TensorOptions().dtype(dtype).device(device));
  const FirstStep first = first_step<kernels>(step, counter, steps, out.device());
  // torch rounds the value of kept units to the dtype; its bytes are the bit pattern that the kernels write.
  const at::Tensor scale = at::full({}, 1.0 / (1.0 - p), at::TensorOptions().dtype(dtype));
  uint64_t keep_bits = 0;
  std::memcpy(&keep_bits, scale.const_data_ptr(), scale.element_size());
  const DropoutMask mask{.steps = steps,
                         .lanes = lanes,
                         .units = units,
                         .philox_stream = static_cast<uint32_t>(stream),
                         .first_step = static_cast<uint32_t>(first.number),
                         .seed = static_cast<uint64_t>(seed),
                         .threshold = philox::drop_threshold(p),
                         .keep_bits = keep_bits,
                         .element_bytes = static_cast<int>(out.element_size()),
                         .counter = first.counter};
  if constexpr (kernels == Kernels::cuda) {
    const DeviceGuard guard(out.device());
    cuda::fill_dropout_mask(mask, out.mutable_data_ptr(), current_stream(out.device()));
  } else {
    fill_dropout_mask(mask, out.mutable_data_ptr());
  }
  return out;
}

GRF_REGISTER(dropout_mask)

}  // namespace
}  // namespace grf
