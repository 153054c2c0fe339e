// The machine from within: what machine.cpp (launches, blocks, who runs next), barriers.cpp (barriers, warps) and
// memory.cpp (shared memory, accesses) have in common.
#pragma once

#include <memory>
#include <mutex>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "cuda_emulator/fiber.h"
#include "cuda_emulator/machine.h"
#include "cuda_emulator/shadow.h"

namespace grf {
namespace simt {

constexpr size_t kSharedLimit = 227 << 10;         // what a block can have on sm_90
constexpr size_t kSharedArena = kSharedLimit * 2;  // with what lies between the arrays
constexpr size_t kGap = 64;

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

enum class State { ready, at_barrier, in_exchange, finished };

struct Thread {
  Fiber fiber;
  dim3 index;
  State state = State::ready;
  bool fenced = false;
  int line = 0;  // where it waits
  Barrier barrier = Barrier::plain;
  Exchange exchange = Exchange::sync;
  unsigned mask = 0;
  uint64_t value = 0;
  int argument = 0, width = 0;
};

inline std::string where(const dim3& at) {
  std::ostringstream text;
  text << '(' << at.x;
  if (at.y || at.z) text << ", " << at.y << ", " << at.z;
  text << ')';
  return text.str();
}

inline dim3 unflatten(uint64_t number, const dim3& extent) {
  return {static_cast<unsigned>(number % extent.x), static_cast<unsigned>(number / extent.x % extent.y),
          static_cast<unsigned>(number / extent.x / extent.y)};
}

class Machine {
 public:
  void run(const Launch& launch, void (*body)(const void*), const void* of);

  uint64_t seed = 0;
  int64_t block_limit = 0, launches = 0;

  // What follows is called from within threads.
  int block_barrier(Barrier kind, int value, int line);
  uint64_t warp_exchange(Exchange kind, unsigned mask, uint64_t value, int argument, int width, int line);
  void* shared_array(const void* tag, size_t bytes, size_t alignment);
  void access(const void* address, size_t bytes, bool writes, bool atomic, const void* code);
  void before_atomic(const void* address);
  [[noreturn]] void fail(const std::string& message, bool of_check = false);
  [[noreturn]] void start_thread();

  Thread& here() { return threads_[running_]; }
  const Launch& launch() const { return launch_; }
  const dim3& block() const { return block_; }
  char* dynamic() { return dynamic_; }

 private:
  static void entry();
  std::vector<uint64_t> blocks_to_run();
  void run_block();
  void begin_block(uint64_t number);
  void resume(size_t thread);
  void wait(State state);
  void make_ready(size_t thread);
  void stop(const std::string& message) {
    failed_ = true;
    failure_ = message;
  }
  void try_exchange(size_t warp);
  uint64_t result_for(size_t warp, unsigned lane);
  void release_barrier();
  void explain_standstill();
  char* allocate_shared(size_t bytes, size_t alignment);
  std::string thread_name(size_t thread) const { return "thread " + where(threads_[thread].index); }
  std::string describe(const Race& race, const void* address, bool writes, const void* code) const;
  Stamp stamp(bool atomic, const void* code) const;

  std::mutex mutex_;
  Stacks stacks_;
  Fiber scheduler_;
  std::vector<Thread> threads_;
  std::vector<Clock> clocks_;
  std::vector<size_t> ready_;
  size_t n_threads_ = 0, unfinished_ = 0, running_ = 0, at_barrier_ = 0;
  int barrier_result_ = 0;
  std::vector<uint64_t> exchanged_ = std::vector<uint64_t>(Stacks::kCount);

  Launch launch_{};
  void (*body_)(const void*) = nullptr;
  const void* of_ = nullptr;
  dim3 block_;
  uint32_t block_number_ = 0, barriers_ = 0;
  Random random_{0};

  bool failed_ = false, failed_check_ = false;
  std::string failure_;

  Shadow shadow_;
  std::unique_ptr<char[]> arena_{new char[kSharedArena]};
  std::unique_ptr<unsigned char[]> arena_state_{new unsigned char[kSharedArena]()};  // see allocate_shared
  size_t arena_used_ = 0, shared_used_ = 0;
  std::vector<std::pair<const void*, void*>> arrays_;
  std::vector<std::unique_ptr<char[]>> allocations_;  // instead of the arena, where a sanitizer looks at addresses
  char* dynamic_ = nullptr;
};

Machine& machine();

extern thread_local bool inside;  // whether this thread of the operating system runs a kernel's code now

}  // namespace simt
}  // namespace grf
