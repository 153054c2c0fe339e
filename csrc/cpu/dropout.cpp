// Counter-based dropout masks on the CPU. Specification: gru4rec_fast/reference/dropout.py.
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <cmath>

#include "common/checks.h"
#include "common/philox.h"

#define GRF_KERNEL "cpu/dropout_kernel.inc"
#include "common/foreach_isa.h"

namespace grf {
namespace {

constexpr int64_t kWordRange = int64_t{1} << 32;

at::Tensor dropout_mask(int64_t steps, int64_t lanes, int64_t units, double p, int64_t seed, int64_t stream,
                        int64_t step, at::ScalarType dtype, at::Device device) {
  check_counters(seed, step, steps);
  TORCH_CHECK_VALUE(lanes >= 0 && lanes < kWordRange, "lanes=", lanes, ": must be in [0, 2**32)");
  TORCH_CHECK_VALUE(units >= 0 && units < kWordRange, "units=", units, ": must be in [0, 2**32)");
  TORCH_CHECK_VALUE(stream >= 0 && stream < kWordRange, "stream=", stream, ": must be in [0, 2**32)");
  TORCH_CHECK_VALUE(p >= 0 && p < 1, "p=", p, ": the probability of dropping must be in [0, 1)");

  at::Tensor mask = at::empty({steps, lanes, units}, at::TensorOptions().dtype(dtype).device(device));
  const auto threshold = static_cast<uint32_t>(std::floor(p * static_cast<double>(kWordRange)));
  const int64_t grain = std::max<int64_t>(1, 16384 / std::max<int64_t>(1, units));  // rows worth a thread
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, dtype, "dropout_mask", [&] {
    const auto fill_row = GRF_DISPATCH(dropout_row<scalar_t>);
    const auto scale = static_cast<scalar_t>(1.0 / (1.0 - p));
    scalar_t* out = mask.mutable_data_ptr<scalar_t>();
    at::parallel_for(0, steps * lanes, grain, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        fill_row(out + row * units, static_cast<uint32_t>(units), static_cast<uint32_t>(stream),
                 static_cast<uint32_t>(step + row / lanes), static_cast<uint32_t>(row % lanes),
                 static_cast<uint64_t>(seed), threshold, scale);
      }
    });
  });
  return mask;
}

// With no tensor among the arguments there is no backend to dispatch on: it is read off `device` here.
at::Tensor select_backend(int64_t steps, int64_t lanes, int64_t units, double p, int64_t seed, int64_t stream,
                          int64_t step, at::ScalarType dtype, at::Device device) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("gru4rec_fast::dropout_mask", "")
                             .typed<at::Tensor(c10::SymInt, c10::SymInt, c10::SymInt, double, c10::SymInt, c10::SymInt,
                                               c10::SymInt, at::ScalarType, at::Device)>();
  const auto key = c10::DispatchKeySet(c10::computeDispatchKey(dtype, at::kStrided, device));
  return op.redispatch(key, steps, lanes, units, p, seed, stream, step, dtype, device);
}

TORCH_LIBRARY_IMPL(gru4rec_fast, BackendSelect, m) {
  m.impl("dropout_mask", &select_backend);
}
TORCH_LIBRARY_IMPL(gru4rec_fast, CPU, m) {
  m.impl("dropout_mask", &dropout_mask);
}

}  // namespace
}  // namespace grf
