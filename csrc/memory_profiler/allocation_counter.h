// Counts what torch's CPU allocator allocates and frees in one thread.
#pragma once

#include <c10/core/Allocator.h>
#include <c10/util/ThreadLocalDebugInfo.h>

#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace grf {

// Bytes and numbers of allocations since the counter was created, and the peak since the previous `read`.
struct AllocationCounts {
  int64_t allocated_bytes, freed_bytes, allocations;
  int64_t peak_bytes;  // largest value of allocated_bytes - freed_bytes; negative if more was freed than allocated
};

// The counts when a phase began, and the time in seconds, of the clock of Python's time.perf_counter.
struct PhaseBegin {
  const char* name;
  double seconds;
  AllocationCounts counts;
};

// Counts the allocations and deallocations of CPU memory by the thread that called `start`, until the same thread calls
// `stop`. The backward pass on the CPU runs in the thread that calls it, so it is counted; worker threads are not.
// torch.profiler observes the allocator by the same mechanism, so a thread cannot use both at the same time.
class AllocationCounter {
 public:
  AllocationCounter();
  ~AllocationCounter();
  void start();
  void stop();
  AllocationCounts read();

  // Calls `read` at the start of a phase and records the counts. `take_phases` returns the records since its last call.
  void begin_phase(const char* name);
  std::vector<PhaseBegin> take_phases();

 private:
  class Observer;
  std::shared_ptr<Observer> observer_;
  std::vector<PhaseBegin> phases_;
  std::thread::id thread_;  // the thread that called `start`; no thread if the counter is stopped
};

}  // namespace grf
