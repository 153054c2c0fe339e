// cudaStream_t, for the declarations of launchers, which are read where there is no CUDA, too.
#pragma once

#if defined(__CUDACC__) || defined(GRF_WITH_CUDA)
#include <cuda_runtime_api.h>
#else
using cudaStream_t = void*;
#endif
