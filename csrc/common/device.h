// DeviceGuard makes a GPU the current device until the end of the scope. current_stream returns the stream to launch
// kernels on. In the emulation and in builds without CUDA, DeviceGuard does nothing and the stream is null. Only
// c10/cuda is included, because ATen/cuda needs headers of CUDA libraries that a machine without a GPU lacks.
#pragma once

#include <c10/core/Device.h>

#include "common/stream.h"

#ifdef GRF_WITH_CUDA

#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

namespace grf {

using DeviceGuard = c10::cuda::CUDAGuard;
inline cudaStream_t current_stream(const c10::Device& device) {
  return c10::cuda::getCurrentCUDAStream(device.index()).stream();
}

}  // namespace grf

#else

namespace grf {

struct DeviceGuard {
  explicit DeviceGuard(const c10::Device&) {}
};
inline cudaStream_t current_stream(const c10::Device&) {
  return nullptr;
}

}  // namespace grf

#endif
