// Counts what torch's CPU allocator allocates and frees in one thread.
#pragma once

#include <c10/core/Allocator.h>
#include <c10/util/ThreadLocalDebugInfo.h>

#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>

namespace grf {

// Bytes and numbers of allocations since the counter was created, and the peak since the previous `read`.
struct AllocationCounts {
  int64_t allocated_bytes, freed_bytes, allocations;
  int64_t peak_bytes;  // largest value of allocated_bytes - freed_bytes; negative if more was freed than allocated
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

 private:
  class Observer;
  std::shared_ptr<Observer> observer_;
  std::thread::id thread_;  // the thread that called `start`; no thread if the counter is stopped
};

}  // namespace grf
