// The Python module `gru4rec_fast._emulated`: settings of the emulator of CUDA kernels, and functions that run a single
// kernel in tests. Importing the module also registers the operators' CUDA implementations for CPU tensors, under the
// namespace gru4rec_fast_emulated. (The C++ namespace grf is short for gru4rec_fast.)
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "cuda_emulator/emulator.h"
#include "cuda_emulator/seeded_faults.h"
#include "cuda_emulator/single_launch.h"

namespace {

std::map<std::string, std::map<std::string, int64_t>> access_counts() {
  std::map<std::string, std::map<std::string, int64_t>> kernels;
  for (const auto& [kernel, counts] : grf::simt::emulator().access_counter.counts) {
    kernels[kernel] = {{"requests", counts.requests},
                       {"sectors", counts.sectors},
                       {"least_sectors", counts.least_sectors},
                       {"shared_requests", counts.shared_requests},
                       {"cycles", counts.cycles},
                       {"least_cycles", counts.least_cycles}};
  }
  return kernels;
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.doc() = "CUDA kernels of gru4rec_fast, emulated on the CPU for tests.";
  m.def("what_is_checked", &grf::simt::what_is_checked,
        "Return which faults of memory accesses are detected: 'races' or 'addresses' (accesses out of bounds).");
  m.def("set_seed", &grf::simt::set_seed,
        "Set the seed of the random order of threads and blocks. Reset the number of launches to 0.");
  m.def("set_block_limit", &grf::simt::set_block_limit,
        "Run at most this many blocks of each grid: the first, the last and random others. 0 means all blocks.");
  m.def("set_shared_limit", &grf::simt::set_shared_limit,
        "Set the bytes of shared memory that a block can have at most: 48 to 227 KB, by default 48 KB.");
  m.def("set_launch_bounds", &grf::simt::set_launch_bounds,
        "Set the maximum number of threads of each kernel: the __launch_bounds__ of the sources, by kernel name.");
  m.def("count_accesses", &grf::simt::count_accesses,
        "Start or stop to count the accesses of kernels. Forget the earlier counts.");
  m.def("access_counts", &access_counts,
        "Return the counts of accesses by kernel and name of the count; access_counter.h describes them.");
  m.def("launches", &grf::simt::launches, "Return the number of kernel launches since set_seed.");
  m.def("test_kernel_names", &grf::test_kernel_names, "Return the names of the kernels that test the emulator.");
  m.def("run_test_kernel", &grf::run_test_kernel,
        "Run the test kernel of this name. Raises RuntimeError or ValueError if the emulator detects a fault.");
  m.def("make_losses", &grf::launch_make_losses,
        "Launch the kernel of sampled_loss that computes losses from scores. Tensors are passed as {name: address}.");
  m.def("make_score_offsets", &grf::launch_make_score_offsets,
        "Launch the kernel of sampled_loss that computes the number that is added to each column of scores.");
}
