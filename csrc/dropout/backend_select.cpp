// Operators with no tensor among their arguments: there is no backend to dispatch on, so it is read off `device` here.
#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>

#include "common/library.h"

namespace grf {
namespace {

at::Tensor dropout_mask(int64_t steps, int64_t lanes, int64_t units, double p, int64_t seed, int64_t stream,
                        int64_t step, at::ScalarType dtype, at::Device device) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow(GRF_LIBRARY_NAME "::dropout_mask", "")
                             .typed<at::Tensor(c10::SymInt, c10::SymInt, c10::SymInt, double, c10::SymInt, c10::SymInt,
                                               c10::SymInt, at::ScalarType, at::Device)>();
  const auto key = c10::DispatchKeySet(c10::computeDispatchKey(dtype, at::kStrided, device));
  return op.redispatch(key, steps, lanes, units, p, seed, stream, step, dtype, device);
}

GRF_TORCH_LIBRARY_IMPL(GRF_LIBRARY, BackendSelect, m) {
  m.impl("dropout_mask", &dropout_mask);
}

}  // namespace
}  // namespace grf
