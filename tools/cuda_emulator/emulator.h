// The class Emulator. Its functions are defined in scheduler.cpp (launches, blocks, which thread runs next),
// barriers.cpp (barriers, warp operations) and memory.cpp (shared memory, checks of accesses).
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "cuda_emulator/access_counter.h"
#include "cuda_emulator/fiber.h"
#include "cuda_emulator/interface.h"
#include "cuda_emulator/shadow_memory.h"

namespace grf {
namespace simt {

constexpr size_t kDefaultShared = 48 << 10;          // bytes that a block can have without a larger limit of its kernel
constexpr size_t kMaxSharedLimit = 227 << 10;        // bytes that a block can have on sm_90 (H100, H200)
constexpr size_t kArenaBytes = kMaxSharedLimit * 2;  // has the block's shared arrays, and gaps between them
constexpr size_t kArrayGap = 64;                     // bytes between arrays, to detect accesses out of bounds
constexpr int kFillByte = 0xA5;                      // initial value of shared memory

// States of a byte of the arena.
constexpr unsigned char kOutside = 0, kUnwritten = 1, kWritten = 2;  // kOutside: in no array of the running block

// A random number generator.
struct Random {
  uint64_t state;
  uint64_t operator()() {  // splitmix64
    uint64_t z = (state += 0x9E3779B97F4A7C15u);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
  }
  // Returns a random number from 0 to limit - 1.
  uint64_t below(uint64_t limit) { return (*this)() % limit; }
};

// What a thread of the running block does. A `ready` thread can run.
enum class ThreadState { ready, at_barrier, in_warp_operation, finished };

// A thread of the running block.
struct Thread {
  Fiber fiber;
  dim3 index;  // threadIdx
  ThreadState state = ThreadState::ready;
  bool fenced = false;  // has called __threadfence since its last write

  // The barrier or warp operation where the thread waits: its source line, its kind and its arguments.
  int line = 0;
  Barrier barrier = Barrier::plain;
  WarpOperation operation = WarpOperation::sync;
  unsigned mask = 0;
  uint64_t value = 0;  // operand of a warp operation, or 1 if the predicate of a barrier is true
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
  // Runs a launch: calls thread_body(closure) in every thread of the grid. Throws if it detects a fault.
  void run(const LaunchConfig& launch, void (*thread_body)(const void*), const void* closure);

  uint64_t seed = 0;
  int64_t block_limit = 0, n_launches = 0;
  size_t shared_limit = kDefaultShared;           // bytes of shared memory that the emulated GPU allows a block
  std::map<std::string, unsigned> launch_bounds;  // maximum number of threads, by kernel name
  AccessCounter access_counter;

  // The limit of a kernel's dynamic shared memory.
  size_t max_dynamic_shared_bytes(const void* function);
  void set_max_dynamic_shared_bytes(const void* function, size_t bytes);

  // The following functions are called by kernel threads.
  int block_barrier(Barrier kind, int predicate, int line);
  uint64_t warp_operation(WarpOperation kind, unsigned mask, uint64_t value, int argument, int width, int line);
  void* shared_array(const void* tag, size_t bytes, size_t alignment);
  void access(const void* address, size_t bytes, bool writes, bool atomic, const void* instruction);
  void start_atomic(const void* address);
  [[noreturn]] void misaligned(const void* address, size_t alignment, const char* file, unsigned line);
  [[noreturn]] void fail(const std::string& message, bool from_check = false);  // from_check: a GRF_DEVICE_CHECK failed
  [[noreturn]] void run_thread();

  Thread& running_thread() { return threads_[running_index_]; }
  const LaunchConfig& launch() const { return launch_; }
  const dim3& block() const { return block_; }
  char* dynamic_shared() { return dynamic_shared_; }

 private:
  static void enter_thread();             // entry of the fibers
  std::vector<uint64_t> blocks_to_run();  // returns flat indices in random order
  void run_block();                       // runs all threads of the started block until they finish
  void start_block(uint64_t flat_index);  // resets threads, clocks and shared memory
  void resume(size_t thread);             // runs a thread until it waits or finishes
  void wait(ThreadState state);           // switches to the scheduler
  [[noreturn]] void finish_thread();
  void make_ready(size_t thread);
  void record_failure(const std::string& message) {
    failed_ = true;
    failure_ = message;
  }
  void try_warp_operation(size_t warp);
  uint64_t warp_result(size_t warp, unsigned lane);  // returns the result for one lane of the current warp operation
  void release_barrier();  // makes all threads ready; records a failure if they wait at different barriers
  void report_deadlock();  // records a failure that says where threads wait
  char* allocate_shared(size_t bytes, size_t alignment);
  std::string thread_name(size_t thread) const { return "thread " + format_index(threads_[thread].index); }
  std::string describe(const Race& race, const void* address, bool writes, const void* instruction) const;
  AccessRecord make_record(bool atomic, const void* instruction) const;  // of an access by the running thread
  bool is_argument(const char* byte) const;  // whether it lies in the arguments of the launch

  std::mutex mutex_;
  FiberStacks stacks_;
  Fiber scheduler_;  // runs run_block(), which chooses the thread to resume
  std::vector<Thread> threads_;
  std::vector<Clock> clocks_;
  std::vector<size_t> ready_threads_;  // indices in threads_
  size_t n_threads_ = 0, n_unfinished_ = 0, running_index_ = 0, n_at_barrier_ = 0;
  int barrier_result_ = 0;
  std::vector<uint64_t> warp_results_ = std::vector<uint64_t>(FiberStacks::kCount);

  LaunchConfig launch_{};
  void (*thread_body_)(const void*) = nullptr;
  const void* closure_ = nullptr;
  dim3 block_;
  uint32_t block_number_ = 0;       // number of blocks that ran before the running one in this launch
  uint32_t n_barriers_passed_ = 0;  // number of __syncthreads that the running block has completed
  Random random_{0};

  bool failed_ = false, failed_check_ = false;
  std::string failure_;

  ShadowMemory shadow_memory_;
  // The running block's arrays in shared memory. They lie in the arena, with gaps between them. If AddressSanitizer
  // detects accesses out of bounds, each array is a heap allocation instead.
  std::unique_ptr<char[]> arena_{new char[kArenaBytes]};
  std::unique_ptr<unsigned char[]> byte_states_{new unsigned char[kArenaBytes]()};
  std::vector<std::unique_ptr<char[]>> heap_arrays_;
  size_t arena_bytes_used_ = 0;                               // with the gaps
  size_t shared_bytes_ = 0;                                   // without the gaps, as on a GPU
  std::vector<std::pair<const void*, void*>> shared_arrays_;  // tag of each GRF_SHARED declaration, and its array
  char* dynamic_shared_ = nullptr;
  std::map<const void*, size_t> max_dynamic_shared_bytes_;  // of the kernels whose limit was raised
};

Emulator& emulator();

extern thread_local bool in_kernel;  // whether this operating system thread runs kernel code now

}  // namespace simt
}  // namespace grf
