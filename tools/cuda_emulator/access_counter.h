// Counts how well the memory accesses of a kernel's warps fit the hardware.
//
// A GPU runs a load or store of all threads of a warp as one request. In global memory, a request costs the sectors (32
// aligned bytes) that it touches. Shared memory has 32 banks of 4 bytes. In one cycle, each bank serves one word of 4
// bytes to any number of threads, so a request takes as many cycles as its busiest bank has words. A request of 8 or 16
// bytes per thread is served in parts, a half or a quarter of the warp at a time.
//
// The emulator runs threads one after another, so requests are found afterwards: the accesses of a warp's threads
// belong to one request if they are by the same instruction, after the same number of barriers and warp operations of
// the thread, and the same number of earlier accesses by that instruction. If a thread skips a load that others run,
// its next one is counted with their skipped one, which gives too many sectors rather than too few.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace grf {
namespace simt {

// Sums over the requests of a kernel.
struct AccessCounts {
  int64_t requests = 0;       // in global memory
  int64_t sectors = 0;        // that these requests touch
  int64_t least_sectors = 0;  // that would hold the bytes of each request if they were neighbors
  int64_t shared_requests = 0;
  int64_t cycles = 0;        // of shared memory
  int64_t least_cycles = 0;  // without bank conflicts
};

class AccessCounter {
 public:
  bool enabled = false;
  std::map<std::string, AccessCounts> counts;  // by kernel name without template arguments

  void start_block(size_t n_threads) {
    if (enabled) threads_.assign(n_threads, {});
  }
  // Records an access by a thread of the block. instruction: identifies the instruction.
  void record(size_t thread, const void* instruction, uintptr_t address, size_t bytes, bool is_shared) {
    threads_[thread].accesses.push_back({reinterpret_cast<uintptr_t>(instruction), threads_[thread].n_synchronizations,
                                         static_cast<uint32_t>(bytes), address, is_shared});
  }
  // Must be called after each barrier or warp operation of a thread.
  void synchronize(size_t thread) {
    if (enabled) ++threads_[thread].n_synchronizations;
  }
  // Adds the requests of the block to the counts of its kernel.
  void finish_block(const std::string& kernel);

 private:
  struct Access {
    uintptr_t instruction;
    uint32_t n_synchronizations, bytes;
    uintptr_t address;
    bool is_shared;
  };
  struct Trace {
    uint32_t n_synchronizations = 0;
    std::vector<Access> accesses;
  };
  // Both add a request: the accesses of the threads of a warp, in the order of the threads.
  static void count_global(const std::vector<Access>& request, AccessCounts& counts);
  static void count_shared(const std::vector<Access>& request, AccessCounts& counts);

  std::vector<Trace> threads_;  // of the running block
};

}  // namespace simt
}  // namespace grf
