// Declares cudaStream_t, for headers that are compiled with and without CUDA.
#pragma once

#if defined(__CUDACC__) || defined(GRF_WITH_CUDA)
#include <cuda_runtime_api.h>
#else
using cudaStream_t = void*;
#endif
