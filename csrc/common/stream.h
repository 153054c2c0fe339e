// cudaStream_t, for the declarations of launchers that the ATen side includes.
#pragma once

#ifdef GRF_EMULATED
using cudaStream_t = void*;
#else
#include <cuda_runtime_api.h>
#endif
