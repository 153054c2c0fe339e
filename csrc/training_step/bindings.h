// Bindings of the fused training step: its C++ classes as Python classes.
#pragma once

#include <pybind11/pybind11.h>

namespace grf {

// Adds the classes to the Python module m.
void bind_training(pybind11::module_& m);

}  // namespace grf
