// Kernels that test the emulator. Some are correct, the others have one fault that the emulator must detect. If a
// template parameter such as kBarrier is false, the kernel runs without a barrier, which is a fault.
#include "cuda_emulator/seeded_faults.h"

#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <stdexcept>

#include "common/simt.cuh"

namespace grf {
namespace {

constexpr int kThreads = 64;

// Each thread passes its index to another thread through shared memory. Without kBarrier, there is a race.
template <bool kBarrier>
__global__ void pass_on(int* out) {
  GRF_SHARED(values, int[kThreads]);
  const int thread = static_cast<int>(threadIdx.x);
  values[thread] = 0;
  __syncthreads();
  values[thread] = thread;
  if (kBarrier) __syncthreads();
  out[thread] = values[(thread + 1) % kThreads];
}

// Each thread passes its index to another thread of its warp. With kBarrier, __syncwarp orders the accesses. Otherwise
// there is a race, because a shuffle does not order memory accesses.
template <bool kBarrier>
__global__ void pass_on_in_warp(int* out) {
  GRF_SHARED(values, int[kThreads]);
  const int thread = static_cast<int>(threadIdx.x);
  values[thread] = thread;
  if (kBarrier) {
    __syncwarp();
  } else {
    __shfl_sync(kAllLanes, thread, 0);
  }
  out[thread] = values[thread ^ 1];
}

// Fault: thread 0 may write the next round before another thread has read the current one. The loop needs a second
// barrier.
__global__ void barrier_forgotten_in_loop(int* out) {
  GRF_SHARED(current_round, int);
  for (int round = 0; round < 3; ++round) {
    if (threadIdx.x == 0) current_round = round;
    __syncthreads();
    out[threadIdx.x] = current_round;
  }
}

// Fault: 24 threads never reach the barrier.
__global__ void some_leave_before_barrier(int* out) {
  if (threadIdx.x >= 40) return;
  __syncthreads();
  out[threadIdx.x] = 1;
}

// Fault: the threads of a block wait at different barriers.
__global__ void two_barriers_in_branches(int* out) {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
  out[threadIdx.x] = 1;
}

// Fault: thread 3 waits for all threads, which wait for thread 3.
__global__ void barrier_against_shuffle(int* out) {
  if (threadIdx.x == 3) {
    __syncthreads();
  } else {
    out[threadIdx.x] = __shfl_sync(kAllLanes, 1, 0);
  }
}

// Fault: lanes 0 to 15 read from lane 20, which does not call the shuffle.
__global__ void shuffle_from_absent_lane(int* out) {
  if (threadIdx.x % 32 < 16) out[threadIdx.x] = __shfl_sync(0xFFFFu, static_cast<int>(threadIdx.x), 20);
}

// Fault: lanes 16 to 31 call a shuffle whose mask does not include them.
__global__ void shuffle_outside_of_mask(int* out) {
  out[threadIdx.x] = __shfl_sync(0xFFFFu, static_cast<int>(threadIdx.x), 0);
}

// No fault: checks the results of warp operations. An up or down shuffle from beyond the warp's first or last lane
// returns the lane's own value.
__global__ void shuffle_past_the_edges(int* out) {
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32;
  const int up = __shfl_up_sync(kAllLanes, thread, 5), down = __shfl_down_sync(kAllLanes, thread, 5);
  const int wrapped = __shfl_sync(kAllLanes, thread, 33);  // lane 1 of the warp
  GRF_DEVICE_CHECK(up == (lane < 5 ? thread : thread - 5), "up");
  GRF_DEVICE_CHECK(down == (lane > 26 ? thread : thread + 5), "down");
  GRF_DEVICE_CHECK(wrapped == thread / 32 * 32 + 1, "index");
  GRF_DEVICE_CHECK(__shfl_xor_sync(kAllLanes, thread, 3, 8) == (thread ^ 3), "exclusive or");
  GRF_DEVICE_CHECK(__ballot_sync(kAllLanes, lane % 3 == 0) == 0x49249249u, "ballot");
  GRF_DEVICE_CHECK(__match_any_sync(kAllLanes, lane / 16) == (lane < 16 ? 0xFFFFu : 0xFFFF0000u), "match");
  GRF_DEVICE_CHECK(__syncthreads_count(lane == 0) == kThreads / 32, "count");
  out[thread] = 1;
}

// Fault: the last thread reads beyond the end of the array.
__global__ void beyond_shared_array(int* out) {
  GRF_SHARED(values, int[kThreads]);
  values[threadIdx.x] = 1;
  __syncthreads();
  out[threadIdx.x] = values[threadIdx.x + 1];
}

// Fault: thread 7 reads an element that was never written.
__global__ void shared_never_written(int* out) {
  GRF_SHARED(values, int[kThreads]);
  if (threadIdx.x != 7) values[threadIdx.x] = 1;
  __syncthreads();
  out[threadIdx.x] = values[threadIdx.x];
}

// All threads of all blocks add to one counter. Without kAtomic, there is a race.
template <bool kAtomic>
__global__ void count_all(int* out) {
  if (kAtomic) {
    atomicAdd(out, 1);
  } else {
    *out += 1;
  }
}

// Every block writes a value, and the last block to finish sums the values. Without kFence, there is a race.
template <bool kFence>
__global__ void last_block_sums(int* values, int* finished, int* sum) {
  GRF_SHARED(is_last, bool);
  if (threadIdx.x == 0) {
    values[blockIdx.x] = static_cast<int>(blockIdx.x);
    if (kFence) __threadfence();
    is_last = atomicAdd(finished, 1) == static_cast<int>(gridDim.x) - 1;
  }
  __syncthreads();
  if (!is_last || threadIdx.x != 1) return;
  int total = 0;
  for (unsigned i = 0; i < gridDim.x; ++i) total += values[i];
  *sum = total;
}

// No fault: threads of different blocks write neighboring bytes.
__global__ void neighboring_bytes(bool* out) {
  out[global_thread()] = true;
}

// Fault, if launched with one thread per element of `out`: the last thread writes beyond the end of the array.
__global__ void beyond_global_array(int* out) {
  out[threadIdx.x + 1] = 1;
}

// Fails a check, which reports a wrong argument and is not a fault of the kernel.
__global__ void check_that_fails(int* out) {
  GRF_DEVICE_CHECK(threadIdx.x != 5, "argument: must not be 5");
  out[threadIdx.x] = 1;
}

// No fault: sums the indices of a block's threads in dynamic shared memory.
__global__ void dynamic_sum(int* out) {
  GRF_DYNAMIC_SHARED(values, int);
  values[threadIdx.x] = static_cast<int>(threadIdx.x);
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int i = 1; i < kThreads; ++i) values[0] += values[i];
    out[blockIdx.x] = values[0];
  }
}

// Each thread copies four integers at once. Without kAligned, there is a fault: the address is not a multiple of 16.
template <bool kAligned>
__global__ void copy_four(int* out) {
  const int thread = static_cast<int>(threadIdx.x);
  if (thread >= 8) return;
  *reinterpret_cast<int4*>(out + 4 * thread + (kAligned ? 0 : 1)) = make_int4(1, 2, 3, 4);
}

// Fault, if launched with more than 32 threads.
__global__ void __launch_bounds__(32) at_most_32_threads(int* out) {
  out[threadIdx.x] = 1;
}

// No fault if the GPU has 99 KB of shared memory: 16 KB of static and 40 KB of dynamic shared memory.
__global__ void static_and_dynamic(int* out) {
  GRF_SHARED(values, int[4 << 10]);
  GRF_DYNAMIC_SHARED(more_values, int);
  values[threadIdx.x] = more_values[threadIdx.x] = static_cast<int>(threadIdx.x);
  out[threadIdx.x] = values[threadIdx.x] + more_values[threadIdx.x];
}

// Neighboring threads access elements that are kStride apart.
template <int kStride>
__global__ void increment(int* out) {
  if (threadIdx.x < kThreads / kStride) out[threadIdx.x * kStride] += 1;
}

// Writes the rows of a matrix and reads its columns. If kPitch is 32, all elements of a column are in the same bank.
template <int kPitch>
__global__ void transpose(int* out) {
  GRF_SHARED(matrix, int[32][kPitch]);
  for (int row = 0; row < 32; ++row) matrix[row][threadIdx.x] = row;
  __syncwarp();
  int sum = 0;
  for (int column = 0; column < 32; ++column) sum += matrix[threadIdx.x][column];
  out[threadIdx.x] = sum;
}

// Each thread loads four integers at once, or one after another.
template <bool kAtOnce>
__global__ void sum_four(int* out) {
  const int* const first = out + 4 * threadIdx.x;
  int4 values;
  if (kAtOnce) {
    values = *reinterpret_cast<const int4*>(first);
  } else {
    values = make_int4(first[0], first[1], first[2], first[3]);
  }
  __syncthreads();
  out[threadIdx.x] = values.x + values.y + values.z + values.w;
}

// Fault if the compiler fuses a multiplication and an addition: the two sums are then rounded differently.
__global__ void sums_of_a_product(int* out) {
  GRF_SHARED(products, float[kThreads]);
  const int thread = static_cast<int>(threadIdx.x);
  const float factor = 1.1f;
  products[thread] = factor * (1.3f + static_cast<float>(out[thread] + thread));
  __syncthreads();
  const float sum = products[thread] - 1.7f;
  const float fused = factor * (1.3f + static_cast<float>(out[thread] + thread)) - 1.7f;
  GRF_DEVICE_CHECK(sum == fused, "the sums differ");
}

void expect(bool condition, const char* message) {
  if (!condition) throw std::logic_error(message);
}

// Returns functions that launch one kernel each, by the name of the test kernel. `out` has kThreads zeros.
const std::map<std::string, std::function<void(int*)>>& launchers() {
  static const std::map<std::string, std::function<void(int*)>> kernels = {
      {"pass_on", [](int* out) { GRF_LAUNCH(pass_on<true>, 1, kThreads, 0, nullptr, out); }},
      {"missing_barrier", [](int* out) { GRF_LAUNCH(pass_on<false>, 1, kThreads, 0, nullptr, out); }},
      {"pass_on_in_warp", [](int* out) { GRF_LAUNCH(pass_on_in_warp<true>, 1, kThreads, 0, nullptr, out); }},
      {"shuffle_is_no_barrier", [](int* out) { GRF_LAUNCH(pass_on_in_warp<false>, 1, kThreads, 0, nullptr, out); }},
      {"barrier_forgotten_in_loop",
       [](int* out) { GRF_LAUNCH(barrier_forgotten_in_loop, 1, kThreads, 0, nullptr, out); }},
      {"some_leave_before_barrier",
       [](int* out) { GRF_LAUNCH(some_leave_before_barrier, 1, kThreads, 0, nullptr, out); }},
      {"two_barriers_in_branches",
       [](int* out) { GRF_LAUNCH(two_barriers_in_branches, 1, kThreads, 0, nullptr, out); }},
      {"barrier_against_shuffle", [](int* out) { GRF_LAUNCH(barrier_against_shuffle, 1, kThreads, 0, nullptr, out); }},
      {"shuffle_from_absent_lane",
       [](int* out) { GRF_LAUNCH(shuffle_from_absent_lane, 1, kThreads, 0, nullptr, out); }},
      {"shuffle_outside_of_mask", [](int* out) { GRF_LAUNCH(shuffle_outside_of_mask, 1, kThreads, 0, nullptr, out); }},
      {"shuffle_past_the_edges", [](int* out) { GRF_LAUNCH(shuffle_past_the_edges, 1, kThreads, 0, nullptr, out); }},
      {"beyond_shared_array", [](int* out) { GRF_LAUNCH(beyond_shared_array, 1, kThreads, 0, nullptr, out); }},
      {"shared_never_written", [](int* out) { GRF_LAUNCH(shared_never_written, 1, kThreads, 0, nullptr, out); }},
      {"count_atomically",
       [](int* out) {
         GRF_LAUNCH(count_all<true>, 5, kThreads, 0, nullptr, out);
         expect(*out == 5 * kThreads, "an atomic addition was lost");
       }},
      {"count_without_atomics", [](int* out) { GRF_LAUNCH(count_all<false>, 2, 1, 0, nullptr, out); }},
      {"last_block_sums",
       [](int* out) {
         GRF_LAUNCH(last_block_sums<true>, 6, kThreads, 0, nullptr, out + 2, out, out + 1);
         expect(out[1] == 15, "the last block's sum is wrong");
       }},
      {"last_block_without_fence",
       [](int* out) { GRF_LAUNCH(last_block_sums<false>, 6, kThreads, 0, nullptr, out + 2, out, out + 1); }},
      {"neighboring_bytes",
       [](int* out) { GRF_LAUNCH(neighboring_bytes, 4, 16, 0, nullptr, reinterpret_cast<bool*>(out)); }},
      {"beyond_global_array", [](int* out) { GRF_LAUNCH(beyond_global_array, 1, kThreads, 0, nullptr, out); }},
      {"check_that_fails", [](int* out) { GRF_LAUNCH(check_that_fails, 1, kThreads, 0, nullptr, out); }},
      {"dynamic_sum", [](int* out) { GRF_LAUNCH(dynamic_sum, 2, kThreads, kThreads * sizeof(int), nullptr, out); }},
      {"aligned", [](int* out) { GRF_LAUNCH(copy_four<true>, 1, kThreads, 0, nullptr, out); }},
      {"not_aligned", [](int* out) { GRF_LAUNCH(copy_four<false>, 1, kThreads, 0, nullptr, out); }},
      {"more_than_launch_bounds", [](int* out) { GRF_LAUNCH((at_most_32_threads), 1, kThreads, 0, nullptr, out); }},
      {"static_and_dynamic",
       [](int* out) { GRF_LAUNCH(static_and_dynamic, 1, kThreads, size_t{40} << 10, nullptr, out); }},
      {"increment_neighbors", [](int* out) { GRF_LAUNCH((increment<1>), 1, kThreads, 0, nullptr, out); }},
      {"increment_distant", [](int* out) { GRF_LAUNCH((increment<8>), 1, kThreads, 0, nullptr, out); }},
      {"transpose_padded", [](int* out) { GRF_LAUNCH((transpose<33>), 1, 32, 0, nullptr, out); }},
      {"transpose_unpadded", [](int* out) { GRF_LAUNCH((transpose<32>), 1, 32, 0, nullptr, out); }},
      {"sum_four_at_once", [](int* out) { GRF_LAUNCH((sum_four<true>), 1, 16, 0, nullptr, out); }},
      {"sum_four_one_by_one", [](int* out) { GRF_LAUNCH((sum_four<false>), 1, 16, 0, nullptr, out); }},
      {"sums_of_a_product", [](int* out) { GRF_LAUNCH((sums_of_a_product), 1, kThreads, 0, nullptr, out); }},
      {"no_blocks", [](int* out) { GRF_LAUNCH(check_that_fails, 0, kThreads, 0, nullptr, out); }},
      {"too_many_threads", [](int* out) { GRF_LAUNCH(check_that_fails, 1, 1025, 0, nullptr, out); }},
      {"too_much_shared_memory",
       [](int* out) { GRF_LAUNCH(check_that_fails, 1, kThreads, size_t{1} << 20, nullptr, out); }},
  };
  return kernels;
}

}  // namespace

std::vector<std::string> test_kernel_names() {
  std::vector<std::string> names;
  for (const auto& [name, run] : launchers()) names.push_back(name);
  return names;
}

void run_test_kernel(const std::string& name) {
  // A heap allocation of the exact size, so that AddressSanitizer detects accesses beyond its end. The address is a
  // multiple of 32, so that the number of sectors (access_counter.h) is known.
  constexpr size_t kBytes = kThreads * sizeof(int);
  const std::unique_ptr<void, decltype(&std::free)> memory(std::aligned_alloc(32, kBytes), &std::free);
  std::memset(memory.get(), 0, kBytes);
  launchers().at(name)(static_cast<int*>(memory.get()));
}

}  // namespace grf
