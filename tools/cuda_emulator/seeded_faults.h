// Kernels with one fault each, and sound ones beside them, by which the emulation itself is tested.
#pragma once

#include <string>
#include <vector>

namespace grf {

// Names of the kernels, and a run of one of them; throws what the emulation finds.
std::vector<std::string> planted_kernels();
void run_planted(const std::string& name);

}  // namespace grf
