// Functions of the emulator, which runs CUDA kernels on the CPU. Tests and device.h call them; device.h defines the
// keywords and built-in functions of CUDA for the CPU.
//
// The blocks of a grid run one after another, in random order. The threads of a block are fibers: one runs until it
// waits for other threads, then another is chosen at random.
//
// A launch returns when its kernel has finished, or throws: std::invalid_argument for a failed GRF_DEVICE_CHECK,
// otherwise std::runtime_error (a race, a barrier that not all threads reach, a shuffle from an inactive lane, an
// invalid launch configuration).
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

namespace grf {   // gru4rec_fast
namespace simt {  // single instruction, multiple threads: CUDA's execution model

// threadIdx, blockIdx, blockDim and gridDim of the running thread.
dim3 thread_index();
dim3 block_index();
dim3 block_extent();
dim3 grid_extent();

// __syncthreads, __syncthreads_or, __syncthreads_and, __syncthreads_count
enum class Barrier { plain, any, all, count };
// __syncwarp; __shfl_sync and its variants up, down and xor; __ballot_sync; __match_any_sync
enum class WarpOperation { sync, index, up, down, exclusive_or, ballot, match };

// Waits for all threads of the block and returns the result of the barrier. `line` is the source line of the call; all
// threads must call from the same line.
int block_barrier(Barrier kind, int predicate, int line);
// Runs a warp operation and returns the result for the calling thread. A lane is a thread's position in its warp.
// `argument` is a shuffle's source lane, delta or lane mask.
uint64_t warp_operation(WarpOperation kind, unsigned mask, uint64_t value, int argument, int width, int line);
void fence();  // __threadfence
// Returns the running block's array for a GRF_SHARED declaration, which `tag` identifies.
void* shared_array(const void* tag, size_t bytes, size_t alignment);
void* dynamic_shared();
[[noreturn]] void check_failed(const char* text);  // ends the launch: a GRF_DEVICE_CHECK failed

// The constructor checks an atomic access for races. Before the check, it may let other threads run.
struct AtomicAccess {
  AtomicAccess(const void* address, size_t bytes);
};
// Read or write memory within an atomic operation that AtomicAccess has checked.
void atomic_read(void* target, const void* source, size_t bytes);
void atomic_write(void* target, const void* source, size_t bytes);

struct LaunchConfig {
  const char* kernel;
  const void* function;
  dim3 grid, block;
  size_t shared_bytes;
  size_t closure_bytes;  // of `closure`, which holds the arguments
};
// Calls thread_body(closure) in every thread of a launch.
void run(const LaunchConfig& launch, void (*thread_body)(const void*), const void* closure);

// Functions of the CUDA runtime, see device.h. `function` is a kernel.
size_t max_dynamic_shared_bytes(const void* function);
void set_max_dynamic_shared_bytes(const void* function, size_t bytes);
size_t shared_limit();

// For tests: sets the maximum bytes of shared memory of a block, for later launches: 99 KB on sm_86, 163 KB on sm_80,
// 227 KB on sm_90 and sm_100. The default is 48 KB, for which a kernel does not have to raise its own limit.
void set_shared_limit(size_t bytes);
// For tests: sets the number of threads in the __launch_bounds__ of each kernel, by its name without namespace.
void set_launch_bounds(const std::map<std::string, unsigned>& threads);
// For tests. The order of threads and blocks is a function of the seed and of the number of launches since set_seed.
void set_seed(uint64_t seed);
// Runs at most this many blocks of each grid: the first, the last and random others. 0: all blocks.
void set_block_limit(int64_t blocks);
// Returns the maximum number of blocks of a grid whose threads loop over tasks (blocks_for in common/simt.cuh). This
// maximum is small, so that tests cover the loop, and because fibers are slower than loop iterations. With a limit by
// set_block_limit, the maximum is CUDA's.
int64_t max_grid_blocks();
// Starts or stops to count the accesses of kernels (access_counter.h). Forgets the earlier counts.
void count_accesses(bool enabled);
// Returns the number of launches since set_seed.
int64_t launches();
// Returns which faults of memory accesses are detected: "races", or "addresses" (accesses out of bounds).
const char* what_is_checked();

}  // namespace simt
}  // namespace grf
