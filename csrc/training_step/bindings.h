// Puts the training step's classes into the Python module.
#pragma once

#include <pybind11/pybind11.h>

namespace grf {

void bind_training(pybind11::module_& m);

}  // namespace grf
