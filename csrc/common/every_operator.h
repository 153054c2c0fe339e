// What is done for every call of an operator, before and after its kernels run. It follows from the operator's schema
// alone. schema.cpp calls both functions, each in the library block of its dispatch key.
#pragma once

#include "common/library.h"

namespace grf {

// Registers a check for each operator of GRF_LIBRARY, at the key BackendSelect, which precedes the kernels for the CPU,
// CUDA and meta tensors, and the composite ones: all tensors are on one device, and a tensor that the schema marks as
// written shares no memory with itself (expanded strides) or with another argument. The check raises ValueError. It
// also selects the kernels of an operator by an argument of type Device.
void register_checks(torch::Library& m);

// Registers a kernel for each operator that writes an argument, at the key ADInplaceOrView. After a call without
// an error, it increments the version counters of the written tensors, so that autograd detects that a tensor which it
// saved has been changed.
void register_version_counters(torch::Library& m);

}  // namespace grf
