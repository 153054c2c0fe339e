// The machine that runs kernels on the processor: blocks one after another in random order, the threads of a block as
// fibers, of which one runs until it waits for others and then another, chosen at random.
//
// Every launch ends with its kernel finished, or throws: std::invalid_argument for a GRF_DEVICE_CHECK, else
// std::runtime_error (a race, a barrier that not all threads reach, a shuffle from nowhere, a launch that CUDA
// refuses).
#pragma once

#include <cstddef>
#include <cstdint>

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

namespace grf {
namespace simt {

// For the device language (device.h), of the thread that runs.
dim3 thread_index();
dim3 block_index();
dim3 block_extent();
dim3 grid_extent();

enum class Barrier { plain, any, all, count };
enum class Exchange { sync, index, up, down, exclusive_or, ballot, match };

int block_barrier(Barrier kind, int value, int line);
uint64_t warp_exchange(Exchange kind, unsigned mask, uint64_t value, int argument, int width, int line);
void fence();
void* shared_array(const void* tag, size_t bytes, size_t alignment);
void* dynamic_shared();
[[noreturn]] void check_failed(const char* text);

// Alive while an atomic operation takes place. Another thread may run before it.
struct AtomicAccess {
  AtomicAccess(const void* address, size_t bytes);
};
void atomic_read(void* to, const void* from, size_t bytes);
void atomic_write(void* to, const void* from, size_t bytes);

// A launch, and what to call in every thread of it.
struct Launch {
  const char* kernel;
  dim3 grid, block;
  size_t shared_bytes;
};
void run(const Launch& launch, void (*body)(const void*), const void* of);

// For tests: the order of threads and blocks is a function of the seed and of how many launches came before.
void set_seed(uint64_t seed);
// Of a grid of more blocks, run the first, the last and others chosen at random, so many in all; 0: all of any grid.
void set_block_limit(int64_t blocks);
// How many blocks a kernel that goes on in strides is given: a fiber costs more than another turn of a loop, which is
// to be tested too; but as many as it likes where few of them are run.
int64_t most_blocks();
int64_t launches();
const char* checks();  // what accesses are checked for: "races" or "addresses"

}  // namespace simt
}  // namespace grf
