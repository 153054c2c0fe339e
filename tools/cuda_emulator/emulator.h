// The class Emulator. Its functions are defined in scheduler.cpp (launches, blocks, which thread runs next),
// barriers.cpp (barriers, warp operations) and memory.cpp (shared memory, checks of accesses).
#pragma once

#include <memory>
#include <mutex>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "cuda_emulator/fiber.h"
#include "cuda_emulator/interface.h"
#include "cuda_emulator/shadow_memory.h"

namespace grf {
namespace simt {

constexpr size_t kSharedLimit = 227 << 10;         // maximum of a block on sm_90
constexpr size_t kSharedArena = kSharedLimit * 2;  // leaves room for the gaps
constexpr size_t kArrayGap = 64;                   // bytes between arrays, to find accesses out of bounds

struct Random {
  uint64_t state;
  uint64_t operator()() {  // splitmix64
    uint64_t z = (state += 0x9E3779B97F4A7C15u);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
  }
  uint64_t below(uint64_t limit) { return (*this)() % limit; }
};

enum class State { ready, at_barrier, in_warp_operation, finished };

struct Thread {
  Fiber fiber;
  dim3 index;
  State state = State::ready;
  bool fenced = false;  // has called __threadfence since its last write
  int line = 0;         // of the barrier or warp operation where it waits
  Barrier barrier = Barrier::plain;
  WarpOperation operation = WarpOperation::sync;
  unsigned mask = 0;
  uint64_t value = 0;
  int argument = 0, width = 0;
};

inline std::string format_index(const dim3& index) {
  std::ostringstream text;
  text << '(' << index.x;
  if (index.y || index.z) text << ", " << index.y << ", " << index.z;
  text << ')';
  return text.str();
}

inline dim3 unflatten(uint64_t flat_index, const dim3& extent) {
  return {static_cast<unsigned>(flat_index % extent.x), static_cast<unsigned>(flat_index / extent.x % extent.y),
          static_cast<unsigned>(flat_index / extent.x / extent.y)};
}

class Emulator {
 public:
  void run(const LaunchConfig& launch, void (*thread_body)(const void*), const void* closure);

  uint64_t seed = 0;
  int64_t block_limit = 0, launches = 0;

  // The following functions are called by kernel threads.
  int block_barrier(Barrier kind, int value, int line);
  uint64_t warp_operation(WarpOperation kind, unsigned mask, uint64_t value, int argument, int width, int line);
  void* shared_array(const void* tag, size_t bytes, size_t alignment);
  void access(const void* address, size_t bytes, bool writes, bool atomic, const void* instruction);
  void start_atomic(const void* address);
  [[noreturn]] void fail(const std::string& message, bool in_check = false);
  [[noreturn]] void start_thread();

  Thread& running_thread() { return threads_[running_]; }
  const LaunchConfig& launch() const { return launch_; }
  const dim3& block() const { return block_; }
  char* dynamic() { return dynamic_; }

 private:
  static void entry();
  std::vector<uint64_t> blocks_to_run();
  void run_block();
  void start_block(uint64_t flat_index);
  void resume(size_t thread);
  void wait(State state);
  void make_ready(size_t thread);
  void record_failure(const std::string& message) {
    failed_ = true;
    failure_ = message;
  }
  void try_warp_operation(size_t warp);
  uint64_t warp_result(size_t warp, unsigned lane);
  void release_barrier();
  void report_deadlock();
  char* allocate_shared(size_t bytes, size_t alignment);
  std::string thread_name(size_t thread) const { return "thread " + format_index(threads_[thread].index); }
  std::string describe(const Race& race, const void* address, bool writes, const void* instruction) const;
  AccessRecord record(bool atomic, const void* instruction) const;

  std::mutex mutex_;
  FiberStacks stacks_;
  Fiber scheduler_;
  std::vector<Thread> threads_;
  std::vector<Clock> clocks_;
  std::vector<size_t> ready_;
  size_t n_threads_ = 0, unfinished_ = 0, running_ = 0, at_barrier_ = 0;
  int barrier_result_ = 0;
  std::vector<uint64_t> warp_results_ = std::vector<uint64_t>(FiberStacks::kCount);

  LaunchConfig launch_{};
  void (*thread_body_)(const void*) = nullptr;
  const void* closure_ = nullptr;
  dim3 block_;
  uint32_t run_index_ = 0;  // of the block: the number of blocks that ran before it in this launch
  uint32_t barriers_ = 0;   // __syncthreads of this block so far
  Random random_{0};

  bool failed_ = false, failed_in_check_ = false;
  std::string failure_;

  ShadowMemory shadow_memory_;
  std::unique_ptr<char[]> arena_{new char[kSharedArena]};
  std::unique_ptr<unsigned char[]> arena_state_{new unsigned char[kSharedArena]()};  // see allocate_shared
  size_t arena_used_ = 0, shared_used_ = 0;
  std::vector<std::pair<const void*, void*>> arrays_;
  std::vector<std::unique_ptr<char[]>> allocations_;  // instead of the arena, if AddressSanitizer checks
  char* dynamic_ = nullptr;
};

Emulator& emulator();

extern thread_local bool in_kernel;  // whether this operating system thread runs kernel code now

}  // namespace simt
}  // namespace grf
