// The emulator's barriers of a block (__syncthreads) and warp operations (shuffles, votes, __syncwarp). A lane is a
// thread's position in its warp.
#include <algorithm>
#include <array>

#include "cuda_emulator/emulator.h"

namespace grf {
namespace simt {

int Emulator::block_barrier(Barrier kind, int predicate, int line) {
  Thread& thread = running_thread();
  thread.barrier = kind;
  thread.value = static_cast<uint64_t>(predicate != 0);
  thread.line = line;
  wait(ThreadState::at_barrier);
  access_counter.synchronize(running_index_);
  return barrier_result_;
}

void Emulator::release_barrier() {
  const Thread& first = *std::find_if(threads_.begin(), threads_.end(),
                                      [](const Thread& thread) { return thread.state == ThreadState::at_barrier; });
  size_t n_true = 0;  // threads whose predicate is true
  for (size_t i = 0; i < n_threads_; ++i) {
    const Thread& thread = threads_[i];
    if (thread.state == ThreadState::finished || thread.line != first.line || thread.barrier != first.barrier) {
      std::ostringstream text;
      text << "divergent barrier: thread " << format_index(first.index) << " waits at the __syncthreads of line "
           << first.line << ", but " << thread_name(i);
      if (thread.state == ThreadState::finished) {
        text << " has returned from the kernel";
      } else {
        text << " waits at the __syncthreads of line " << thread.line;
      }
      record_failure(text.str());
      return;
    }
    n_true += thread.value;
  }
  barrier_result_ = static_cast<int>(first.barrier == Barrier::any   ? n_true > 0
                                     : first.barrier == Barrier::all ? n_true == n_threads_
                                                                     : n_true);
  ++n_barriers_passed_;
  n_at_barrier_ = 0;
  for (size_t i = 0; i < n_threads_; ++i) {
    clocks_[i].barrier_time = ++clocks_[i].time;
    make_ready(i);
  }
}

void Emulator::report_deadlock() {
  std::ostringstream text;
  text << "divergent barrier: no thread can continue;";
  int n_described = 0;  // neighboring threads that wait at the same place are described once
  for (size_t i = 0; i < n_threads_ && n_described < 4; ++i) {
    const Thread& thread = threads_[i];
    if (i > 0 && threads_[i - 1].state == thread.state && threads_[i - 1].line == thread.line) continue;
    ++n_described;
    text << ' ' << thread_name(i);
    if (thread.state == ThreadState::finished) {
      text << " has returned from the kernel;";
    } else if (thread.state == ThreadState::at_barrier) {
      text << " waits at the __syncthreads of line " << thread.line << ';';
    } else {
      text << " waits in line " << thread.line << " for the lanes of mask 0x" << std::hex << thread.mask << std::dec
           << ';';
    }
  }
  std::string message = text.str();
  message.pop_back();
  record_failure(message);
}

uint64_t Emulator::warp_operation(WarpOperation kind, unsigned mask, uint64_t value, int argument, int width,
                                  int line) {
  Thread& thread = running_thread();
  const unsigned lane = static_cast<unsigned>(running_index_ % kWarpSize);
  if ((mask >> lane & 1) == 0) {
    std::ostringstream text;
    text << "line " << line << ": " << thread_name(running_index_) << " calls a warp operation whose mask 0x"
         << std::hex << mask << std::dec << " does not include its lane " << lane;
    fail(text.str());
  }
  if (width < 1 || width > kWarpSize || (width & (width - 1)) != 0) {
    fail("line " + std::to_string(line) + ": a shuffle's width must be a power of two up to 32, not " +
         std::to_string(width));
  }
  thread.operation = kind;
  thread.mask = mask;
  thread.value = value;
  thread.argument = argument;
  thread.width = width;
  thread.line = line;
  wait(ThreadState::in_warp_operation);
  access_counter.synchronize(running_index_);
  return warp_results_[running_index_];
}

// Runs the warp operation of the running thread if all lanes of its mask wait in the same operation. Otherwise does
// nothing: the last of these lanes to call the operation will run it.
void Emulator::try_warp_operation(size_t warp) {
  const size_t first = warp * kWarpSize;
  const Thread& caller = threads_[running_index_];
  for (unsigned lane = 0; lane < kWarpSize; ++lane) {
    if ((caller.mask >> lane & 1) == 0) continue;
    if (first + lane >= n_threads_) {
      record_failure("line " + std::to_string(caller.line) + ": a warp operation names lane " + std::to_string(lane) +
                     ", which a block of " + std::to_string(n_threads_) + " threads does not have in this warp");
      return;
    }
    const Thread& other = threads_[first + lane];
    if (other.state != ThreadState::in_warp_operation) return;
    if (other.mask != caller.mask || other.operation != caller.operation || other.line != caller.line) return;
  }
  uint64_t results[kWarpSize];
  for (unsigned lane = 0; lane < kWarpSize; ++lane) {
    if ((caller.mask >> lane & 1) != 0) results[lane] = warp_result(warp, lane);
    if (failed_) return;
  }
  std::array<uint32_t, kWarpSize> lane_times{};  // the clocks of the lanes that a __syncwarp synchronizes
  for (unsigned lane = 0; lane < kWarpSize; ++lane) {
    if ((caller.mask >> lane & 1) == 0) continue;
    warp_results_[first + lane] = results[lane];
    make_ready(first + lane);
    if (caller.operation != WarpOperation::sync) continue;
    Clock& clock = clocks_[first + lane];
    clock.lane_times[lane] = ++clock.time;
    for (unsigned i = 0; i < kWarpSize; ++i) lane_times[i] = std::max(lane_times[i], clock.lane_times[i]);
  }
  if (caller.operation != WarpOperation::sync) return;  // only __syncwarp orders memory accesses
  for (unsigned lane = 0; lane < kWarpSize; ++lane) {
    if ((caller.mask >> lane & 1) != 0) clocks_[first + lane].lane_times = lane_times;
  }
}

uint64_t Emulator::warp_result(size_t warp, unsigned lane) {
  const Thread* lanes = &threads_[warp * kWarpSize];
  const Thread& thread = lanes[lane];
  // Lanes from begin to end - 1 shuffle among themselves; this lane reads from `source`.
  const int begin = static_cast<int>(lane) / thread.width * thread.width, end = begin + thread.width;
  int source = static_cast<int>(lane);
  uint64_t bits = 0;
  switch (thread.operation) {
    case WarpOperation::sync:
      return 0;
    case WarpOperation::ballot:
    case WarpOperation::match:
      for (unsigned i = 0; i < kWarpSize; ++i) {
        if ((thread.mask >> i & 1) == 0) continue;
        const bool set =
            thread.operation == WarpOperation::ballot ? lanes[i].value != 0 : lanes[i].value == thread.value;
        bits |= uint64_t{set} << i;
      }
      return bits;
    case WarpOperation::index:
      source = begin + (thread.argument & (thread.width - 1));
      break;
    case WarpOperation::up:
      if (source - thread.argument >= begin) source -= thread.argument;
      break;
    case WarpOperation::down:
      if (source + thread.argument < end) source += thread.argument;
      break;
    case WarpOperation::exclusive_or:
      if ((source ^ thread.argument) < end) source ^= thread.argument;
      break;
  }
  if (source < 0 || source >= kWarpSize || (thread.mask >> source & 1) == 0) {
    record_failure("line " + std::to_string(thread.line) + ": " + thread_name(warp * kWarpSize + lane) +
                   " shuffles from lane " + std::to_string(source) +
                   ", which does not take part: the result is undefined");
    return 0;
  }
  return lanes[source].value;
}

int block_barrier(Barrier kind, int predicate, int line) {
  return emulator().block_barrier(kind, predicate, line);
}
uint64_t warp_operation(WarpOperation kind, unsigned mask, uint64_t value, int argument, int width, int line) {
  return emulator().warp_operation(kind, mask, value, argument, width, line);
}

}  // namespace simt
}  // namespace grf
