// Runs kernels that test the emulator. Each has at most one fault, which the emulator must detect.
#pragma once

#include <string>
#include <vector>

namespace grf {

std::vector<std::string> test_kernel_names();
// Runs the kernel of this name. Throws an exception if the emulator detects a fault.
void run_test_kernel(const std::string& name);

}  // namespace grf
