// The Python module `gru4rec_fast._emulated`: the emulation's settings, its planted faults, launchers alone. Importing
// it also registers every CUDA operator, on CPU tensors, in the namespace gru4rec_fast_emulated.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "cuda_emulator/single_launch.h"
#include "cuda_emulator/machine.h"
#include "cuda_emulator/seeded_faults.h"

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.doc() = "CUDA kernels of gru4rec_fast under an emulation on the processor: a tool for tests.";
  m.def("checks", &grf::simt::checks, "What memory accesses are checked for: 'races' or 'addresses'.");
  m.def("set_seed", &grf::simt::set_seed,
        "Start anew the order of threads and blocks, which is a function of this seed and the launches since.");
  m.def("set_block_limit", &grf::simt::set_block_limit,
        "Of larger grids run this many blocks, the first and the last among them; 0: all.");
  m.def("launches", &grf::simt::launches, "Kernels launched since the seed was set.");
  m.def("planted_kernels", &grf::planted_kernels, "Names of the kernels with and without planted faults.");
  m.def("run_planted", &grf::run_planted, "Run one of them; RuntimeError or ValueError says what was found.");
  m.def("make_losses", &grf::make_losses_alone, "The row kernel of sampled_loss alone, on tensors by address.");
  m.def("make_score_offsets", &grf::make_score_offsets_alone, "The same of the kernel that makes its offsets.");
}
