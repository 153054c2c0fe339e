// Interface of the emulator: for the device language (device.h), for launches, and for tests.
//
// The emulator runs kernels on the CPU. The blocks of a grid run one after another, in random order. The threads of a
// block are fibers: one runs until it waits for others, then another is chosen at random.
//
// A launch returns when its kernel has finished, or throws: std::invalid_argument for a failed GRF_DEVICE_CHECK,
// otherwise std::runtime_error (a race, a barrier that not all threads reach, a shuffle from an inactive lane, an
// invalid launch configuration).
#pragma once

#include <cstddef>
#include <cstdint>

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

namespace grf {
namespace simt {

// threadIdx, blockIdx, blockDim and gridDim of the running thread.
dim3 thread_index();
dim3 block_index();
dim3 block_extent();
dim3 grid_extent();

enum class Barrier { plain, any, all, count };
enum class WarpOperation { sync, index, up, down, exclusive_or, ballot, match };

int block_barrier(Barrier kind, int value, int line);
uint64_t warp_operation(WarpOperation kind, unsigned mask, uint64_t value, int argument, int width, int line);
void fence();
void* shared_array(const void* tag, size_t bytes, size_t alignment);
void* dynamic_shared();
[[noreturn]] void check_failed(const char* text);

// Checks an atomic access. The constructor may run other threads first.
struct AtomicAccess {
  AtomicAccess(const void* address, size_t bytes);
};
void atomic_read(void* target, const void* source, size_t bytes);
void atomic_write(void* target, const void* source, size_t bytes);

struct LaunchConfig {
  const char* kernel;
  dim3 grid, block;
  size_t shared_bytes;
};
// Calls thread_body(closure) in every thread of a launch.
void run(const LaunchConfig& launch, void (*thread_body)(const void*), const void* closure);

// For tests. The order of threads and blocks is a function of the seed and of the number of launches since set_seed.
void set_seed(uint64_t seed);
// Runs at most this many blocks of a grid: the first, the last and random others. 0: all blocks.
void set_block_limit(int64_t blocks);
// Maximum number of blocks of a launch whose threads loop in strides of the grid. It is small, because fibers are
// slower than loop iterations and so that tests cover the loop; with a block limit it is as large as on a GPU.
int64_t most_blocks();
int64_t launches();
const char* checks();  // "races" or "addresses": what accesses are checked for

}  // namespace simt
}  // namespace grf
