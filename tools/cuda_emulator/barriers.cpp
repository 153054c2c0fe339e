// Barriers of a block, and what the lanes of a warp do together.
#include <algorithm>
#include <array>

#include "cuda_emulator/machine_parts.h"

namespace grf {
namespace simt {

int Machine::block_barrier(Barrier kind, int value, int line) {
  Thread& thread = here();
  thread.barrier = kind;
  thread.value = static_cast<uint64_t>(value != 0);
  thread.line = line;
  wait(State::at_barrier);
  return barrier_result_;
}

void Machine::release_barrier() {
  const Thread& first = *std::find_if(threads_.begin(), threads_.end(),
                                      [](const Thread& thread) { return thread.state == State::at_barrier; });
  size_t count = 0;
  for (size_t i = 0; i < n_threads_; ++i) {
    const Thread& thread = threads_[i];
    if (thread.state == State::finished || thread.line != first.line || thread.barrier != first.barrier) {
      std::ostringstream text;
      text << "divergent barrier: thread " << where(first.index) << " waits at the __syncthreads of line " << first.line
           << ", but " << thread_name(i);
      if (thread.state == State::finished) {
        text << " has left the kernel";
      } else {
        text << " at that of line " << thread.line;
      }
      stop(text.str());
      return;
    }
    count += thread.value;
  }
  barrier_result_ = static_cast<int>(first.barrier == Barrier::any   ? count > 0
                                     : first.barrier == Barrier::all ? count == n_threads_
                                                                     : count);
  ++barriers_;
  at_barrier_ = 0;
  for (size_t i = 0; i < n_threads_; ++i) {
    clocks_[i].at_barrier = ++clocks_[i].now;
    make_ready(i);
  }
}

void Machine::explain_standstill() {
  std::ostringstream text;
  text << "divergent barrier: no thread can go on;";
  int named = 0;
  for (size_t i = 0; i < n_threads_ && named < 4; ++i) {
    const Thread& thread = threads_[i];
    const bool first = i == 0 || threads_[i - 1].state != thread.state || threads_[i - 1].line != thread.line;
    if (!first) continue;
    ++named;
    text << ' ' << thread_name(i);
    if (thread.state == State::finished) {
      text << " has left the kernel;";
    } else if (thread.state == State::at_barrier) {
      text << " waits at the __syncthreads of line " << thread.line << ';';
    } else {
      text << " waits in line " << thread.line << " for the lanes of mask 0x" << std::hex << thread.mask << std::dec
           << ';';
    }
  }
  std::string message = text.str();
  message.pop_back();
  stop(message);
}

uint64_t Machine::warp_exchange(Exchange kind, unsigned mask, uint64_t value, int argument, int width, int line) {
  Thread& thread = here();
  const unsigned lane = static_cast<unsigned>(running_ % kWarp);
  if ((mask >> lane & 1) == 0) {
    std::ostringstream text;
    text << "line " << line << ": " << thread_name(running_) << " calls a warp operation whose mask 0x" << std::hex
         << mask << std::dec << " leaves its lane " << lane << " out";
    fail(text.str());
  }
  if (width < 1 || width > kWarp || (width & (width - 1)) != 0) {
    fail("line " + std::to_string(line) + ": a shuffle's width must be a power of two up to 32, not " +
         std::to_string(width));
  }
  thread.exchange = kind;
  thread.mask = mask;
  thread.value = value;
  thread.argument = argument;
  thread.width = width;
  thread.line = line;
  wait(State::in_exchange);
  return exchanged_[running_];
}

// Lets the lanes of a mask go on once all of them wait in the same operation.
void Machine::try_exchange(size_t warp) {
  const size_t first = warp * kWarp;
  const Thread& caller = threads_[running_];
  for (unsigned lane = 0; lane < kWarp; ++lane) {
    if ((caller.mask >> lane & 1) == 0) continue;
    if (first + lane >= n_threads_) {
      stop("line " + std::to_string(caller.line) + ": a warp operation names lane " + std::to_string(lane) +
           ", which a block of " + std::to_string(n_threads_) + " threads does not have there");
      return;
    }
    const Thread& other = threads_[first + lane];
    if (other.state != State::in_exchange) return;
    if (other.mask != caller.mask || other.exchange != caller.exchange || other.line != caller.line) return;
  }
  uint64_t results[kWarp];
  for (unsigned lane = 0; lane < kWarp; ++lane) {
    if ((caller.mask >> lane & 1) != 0) results[lane] = result_for(warp, lane);
    if (failed_) return;
  }
  std::array<uint32_t, kWarp> known{};
  for (unsigned lane = 0; lane < kWarp; ++lane) {
    if ((caller.mask >> lane & 1) == 0) continue;
    exchanged_[first + lane] = results[lane];
    make_ready(first + lane);
    if (caller.exchange != Exchange::sync) continue;
    Clock& clock = clocks_[first + lane];
    clock.known[lane] = ++clock.now;
    for (unsigned i = 0; i < kWarp; ++i) known[i] = std::max(known[i], clock.known[i]);
  }
  if (caller.exchange != Exchange::sync) return;  // CUDA promises no order of memory after the others
  for (unsigned lane = 0; lane < kWarp; ++lane) {
    if ((caller.mask >> lane & 1) != 0) clocks_[first + lane].known = known;
  }
}

uint64_t Machine::result_for(size_t warp, unsigned lane) {
  const Thread* lanes = &threads_[warp * kWarp];
  const Thread& thread = lanes[lane];
  const int begin = static_cast<int>(lane) / thread.width * thread.width, end = begin + thread.width;
  int source = static_cast<int>(lane);
  uint64_t bits = 0;
  switch (thread.exchange) {
    case Exchange::sync:
      return 0;
    case Exchange::ballot:
    case Exchange::match:
      for (unsigned i = 0; i < kWarp; ++i) {
        if ((thread.mask >> i & 1) == 0) continue;
        const bool set = thread.exchange == Exchange::ballot ? lanes[i].value != 0 : lanes[i].value == thread.value;
        bits |= uint64_t{set} << i;
      }
      return bits;
    case Exchange::index:
      source = begin + (thread.argument & (thread.width - 1));
      break;
    case Exchange::up:
      if (source - thread.argument >= begin) source -= thread.argument;
      break;
    case Exchange::down:
      if (source + thread.argument < end) source += thread.argument;
      break;
    case Exchange::exclusive_or:
      if ((source ^ thread.argument) < end) source ^= thread.argument;
      break;
  }
  if (source < 0 || source >= kWarp || (thread.mask >> source & 1) == 0) {
    stop("line " + std::to_string(thread.line) + ": " + thread_name(warp * kWarp + lane) + " shuffles from lane " +
         std::to_string(source) + ", which takes no part: the value is undefined");
    return 0;
  }
  return lanes[source].value;
}

int block_barrier(Barrier kind, int value, int line) {
  return machine().block_barrier(kind, value, line);
}
uint64_t warp_exchange(Exchange kind, unsigned mask, uint64_t value, int argument, int width, int line) {
  return machine().warp_exchange(kind, mask, value, argument, width, line);
}

}  // namespace simt
}  // namespace grf
