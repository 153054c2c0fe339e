// Binds the C++ classes of the fused training step to Python.
#pragma once

#include <pybind11/pybind11.h>

namespace grf {

void bind_training(pybind11::module_& m);

}  // namespace grf
