// Adds AllocationCounter to a Python module.
#pragma once

#include <pybind11/pybind11.h>

namespace grf {

void bind_memory(pybind11::module_& m);

}  // namespace grf
