#include "cuda_emulator/seeded_faults.h"

#include <functional>
#include <map>
#include <stdexcept>

#include "common/simt.cuh"

namespace grf {
namespace {

constexpr int kThreads = 64;

// Each thread passes its index to another one through shared memory. Fault without kBarrier: a race.
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

// The same within a warp, where __syncwarp is enough. Fault without kBarrier: a shuffle does not order memory.
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

// A thread may write the next value before another one has read the last: the loop needs a second barrier.
__global__ void barrier_forgotten_in_loop(int* out) {
  GRF_SHARED(number, int);
  for (int round = 0; round < 3; ++round) {
    if (threadIdx.x == 0) number = round;
    __syncthreads();
    out[threadIdx.x] = number;
  }
}

__global__ void some_leave_before_barrier(int* out) {
  if (threadIdx.x >= 40) return;
  __syncthreads();
  out[threadIdx.x] = 1;
}

__global__ void two_barriers_in_branches(int* out) {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
  out[threadIdx.x] = 1;
}

__global__ void barrier_against_shuffle(int* out) {
  if (threadIdx.x == 3) {
    __syncthreads();
  } else {
    out[threadIdx.x] = __shfl_sync(kAllLanes, 1, 0);
  }
}

__global__ void shuffle_from_absent_lane(int* out) {
  if (threadIdx.x % 32 < 16) out[threadIdx.x] = __shfl_sync(0xFFFFu, static_cast<int>(threadIdx.x), 20);
}

__global__ void shuffle_outside_of_mask(int* out) {
  out[threadIdx.x] = __shfl_sync(0xFFFFu, static_cast<int>(threadIdx.x), 0);
}

// No fault: up and down shuffles beyond the warp's edges return the lane's own value.
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

__global__ void beyond_shared_array(int* out) {
  GRF_SHARED(values, int[kThreads]);
  values[threadIdx.x] = 1;
  __syncthreads();
  out[threadIdx.x] = values[threadIdx.x + 1];
}

__global__ void shared_never_written(int* out) {
  GRF_SHARED(values, int[kThreads]);
  if (threadIdx.x != 7) values[threadIdx.x] = 1;
  __syncthreads();
  out[threadIdx.x] = values[threadIdx.x];
}

// All threads of all blocks add to one counter. Fault without kAtomic: a race.
template <bool kAtomic>
__global__ void count_all(int* out) {
  if (kAtomic) {
    atomicAdd(out, 1);
  } else {
    *out += 1;
  }
}

// Every block writes a value, and the last block to finish sums them. Fault without kFence: a race.
template <bool kFence>
__global__ void last_block_sums(int* values, int* finished, int* sum) {
  GRF_SHARED(last, bool);
  if (threadIdx.x == 0) {
    values[blockIdx.x] = static_cast<int>(blockIdx.x);
    if (kFence) __threadfence();
    last = atomicAdd(finished, 1) == static_cast<int>(gridDim.x) - 1;
  }
  __syncthreads();
  if (!last || threadIdx.x != 1) return;
  int total = 0;
  for (unsigned i = 0; i < gridDim.x; ++i) total += values[i];
  *sum = total;
}

// No fault: blocks write neighboring bytes.
__global__ void neighboring_bytes(bool* out) {
  out[global_thread()] = true;
}

__global__ void beyond_global_array(int* out) {
  out[threadIdx.x + 1] = 1;
}

__global__ void check_that_fails(int* out) {
  GRF_DEVICE_CHECK(threadIdx.x != 5, "argument: must not be 5");
  out[threadIdx.x] = 1;
}

__global__ void dynamic_sum(int* out) {
  GRF_DYNAMIC_SHARED(values, int);
  values[threadIdx.x] = static_cast<int>(threadIdx.x);
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int i = 1; i < kThreads; ++i) values[0] += values[i];
    out[blockIdx.x] = values[0];
  }
}

void expect(bool condition, const char* message) {
  if (!condition) throw std::logic_error(message);
}

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
      {"no_blocks", [](int* out) { GRF_LAUNCH(check_that_fails, 0, kThreads, 0, nullptr, out); }},
      {"too_many_threads", [](int* out) { GRF_LAUNCH(check_that_fails, 1, 1025, 0, nullptr, out); }},
      {"too_much_shared_memory",
       [](int* out) { GRF_LAUNCH(check_that_fails, 1, kThreads, size_t{1} << 20, nullptr, out); }},
  };
  return kernels;
}

}  // namespace

std::vector<std::string> test_kernels() {
  std::vector<std::string> names;
  for (const auto& [name, run] : launchers()) names.push_back(name);
  return names;
}

void run_test_kernel(const std::string& name) {
  // On the heap and of the exact size, so that AddressSanitizer detects accesses beyond it.
  const std::vector<int> zeros(kThreads, 0);
  std::vector<int> out(zeros);
  launchers().at(name)(out.data());
}

}  // namespace grf
