// The guard and the stream of the device that CUDA kernels run on. c10/cuda only: ATen/cuda wants headers of libraries
// that a machine without a GPU lacks. Compiled for the emulation, or without CUDA, there is neither.
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
