// The Python module `gru4rec_fast._emulated`: settings of the emulation, and kernels for its own tests. Importing it
// also registers the CUDA operators for CPU tensors, in the namespace gru4rec_fast_emulated.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "cuda_emulator/interface.h"
#include "cuda_emulator/seeded_faults.h"
#include "cuda_emulator/single_launch.h"

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.doc() = "CUDA kernels of gru4rec_fast, emulated on the CPU for tests.";
  m.def("checks", &grf::simt::checks, "Return what memory accesses are checked for: 'races' or 'addresses'.");
  m.def("set_seed", &grf::simt::set_seed,
        "Set the seed of the random order of threads and blocks, and the number of launches to 0.");
  m.def("set_block_limit", &grf::simt::set_block_limit,
        "Run at most this many blocks of a grid, among them the first and the last; 0: all blocks.");
  m.def("launches", &grf::simt::launches, "Return the number of kernel launches since set_seed.");
  m.def("test_kernels", &grf::test_kernels, "Return the names of the kernels that test the emulation.");
  m.def("run_test_kernel", &grf::run_test_kernel,
        "Run one of test_kernels(). A fault raises RuntimeError or ValueError.");
  m.def("make_losses", &grf::launch_make_losses,
        "Launch the row kernel of sampled_loss. Tensors are given by address.");
  m.def("make_score_offsets", &grf::launch_make_score_offsets, "Launch the kernel that makes the score offsets.");
}
