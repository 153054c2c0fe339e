// Kernels that test the emulation: each has one fault or none.
#pragma once

#include <string>
#include <vector>

namespace grf {

std::vector<std::string> test_kernels();
// Runs one of them. Throws the fault that the emulation finds.
void run_test_kernel(const std::string& name);

}  // namespace grf
