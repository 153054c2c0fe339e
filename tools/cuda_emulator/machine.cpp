#include "cuda_emulator/machine.h"

#include <algorithm>
#include <cstring>
#include <exception>
#include <stdexcept>

#include "cuda_emulator/machine_parts.h"

#if defined(__x86_64__) && defined(__linux__)
asm(R"(
.text
.hidden grf_fiber_switch
.globl grf_fiber_switch
.type grf_fiber_switch, @function
grf_fiber_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size grf_fiber_switch, .-grf_fiber_switch
)");
#endif

namespace grf {
namespace simt {

Machine& machine() {
  static Machine* only = new Machine;  // never destroyed: kernels may run while the process ends
  return *only;
}

thread_local bool inside = false;

void Machine::run(const Launch& launch, void (*body)(const void*), const void* of) {
  const std::lock_guard<std::mutex> guard(mutex_);
  launch_ = launch;
  body_ = body;
  of_ = of;
  const auto refuse = [&](const char* why) {
    throw std::runtime_error(std::string(launch.kernel) + ": invalid launch configuration: " + why);
  };
  const dim3 &grid = launch.grid, &block = launch.block;
  if (!grid.x || !grid.y || !grid.z || !block.x || !block.y || !block.z) refuse("an extent of 0");
  if (grid.x > 0x7FFFFFFFu || grid.y > 65535 || grid.z > 65535) refuse("too many blocks");
  if (uint64_t{block.x} * block.y * block.z > 1024 || block.z > 64) refuse("more than 1024 threads");
  if (launch.shared_bytes > kSharedLimit) refuse("more shared memory than a block has");
  n_threads_ = size_t{block.x} * block.y * block.z;
  random_.state = seed * 0x2545F4914F6CDD1Du + static_cast<uint64_t>(++launches);
  failed_ = failed_check_ = false;
  shadow_.begin_launch();
  block_number_ = 0;
  for (const uint64_t number : blocks_to_run()) {
    begin_block(number);
    run_block();
    ++block_number_;
    if (failed_) break;
  }
  if (!failed_) return;
  std::ostringstream text;
  text << failure_;
  if (failed_check_) throw std::invalid_argument(text.str());
  text << " [kernel " << launch_.kernel << ", block " << where(block_) << ", emulation seed " << seed << ", launch "
       << launches << "]";
  throw std::runtime_error(text.str());
}

std::vector<uint64_t> Machine::blocks_to_run() {
  const uint64_t total = uint64_t{launch_.grid.x} * launch_.grid.y * launch_.grid.z;
  std::vector<uint64_t> blocks;
  if (block_limit > 0 && total > static_cast<uint64_t>(block_limit)) {
    blocks = {0, total - 1};
    while (blocks.size() < static_cast<size_t>(block_limit)) blocks.push_back(random_.below(total));
    std::sort(blocks.begin(), blocks.end());
    blocks.erase(std::unique(blocks.begin(), blocks.end()), blocks.end());
  } else {
    blocks.resize(total);
    for (uint64_t i = 0; i < total; ++i) blocks[i] = i;
  }
  for (size_t i = blocks.size(); i > 1; --i) std::swap(blocks[i - 1], blocks[random_.below(i)]);
  return blocks;
}

void Machine::begin_block(uint64_t number) {
  block_ = unflatten(number, launch_.grid);
  barriers_ = 0;
  at_barrier_ = 0;
  unfinished_ = n_threads_;
  clocks_.assign(n_threads_, Clock());
  threads_.resize(n_threads_);
  ready_.resize(n_threads_);
  for (size_t i = 0; i < n_threads_; ++i) {
    ready_[i] = i;
    threads_[i] = Thread();
    threads_[i].index = unflatten(i, launch_.block);
    threads_[i].fiber.prepare(stacks_.stack(i), Stacks::bytes(i), &Machine::entry);
  }
  if (arena_used_ > 0) {
    std::memset(arena_state_.get(), 0, arena_used_);
    shadow_.forget(reinterpret_cast<uintptr_t>(arena_.get()), arena_used_);
  }
  arena_used_ = shared_used_ = 0;
  arrays_.clear();
  allocations_.clear();
  dynamic_ = launch_.shared_bytes > 0 ? allocate_shared(launch_.shared_bytes, 16) : nullptr;
  shadow_.begin_block(&clocks_);
}

void Machine::run_block() {
  while (unfinished_ > 0 && !failed_) {
    if (ready_.empty()) {
      if (at_barrier_ == unfinished_) {
        release_barrier();
      } else {
        explain_standstill();
      }
      continue;
    }
    const size_t pick = random_.below(ready_.size());
    std::swap(ready_[pick], ready_.back());
    const size_t thread = ready_.back();
    ready_.pop_back();
    resume(thread);
  }
}

void Machine::resume(size_t thread) {
  running_ = thread;
  inside = true;
  scheduler_.switch_to(threads_[thread].fiber);
  inside = false;
  if (failed_) return;
  switch (threads_[thread].state) {
    case State::ready:
      ready_.push_back(thread);
      break;
    case State::at_barrier:
      ++at_barrier_;
      break;
    case State::in_exchange:
      try_exchange(thread / kWarp);
      break;
    case State::finished:
      --unfinished_;
      break;
  }
}

void Machine::entry() {
  machine().start_thread();
}

void Machine::start_thread() {
  Fiber::arrived(here().fiber, &scheduler_);
  try {
    body_(of_);
  } catch (const std::exception& error) {
    stop(error.what());
  }
  while (true) wait(State::finished);
}

void Machine::wait(State state) {
  inside = false;
  Thread& thread = here();
  thread.state = state;
  thread.fiber.switch_to(scheduler_);
  inside = true;
}

void Machine::make_ready(size_t thread) {
  threads_[thread].state = State::ready;
  ready_.push_back(thread);
}

void Machine::fail(const std::string& message, bool of_check) {
  failed_check_ = of_check;
  stop(message);
  while (true) wait(State::finished);  // never comes back
}

// What the device language calls, and what tests set.

dim3 thread_index() {
  return machine().here().index;
}
dim3 block_index() {
  return machine().block();
}
dim3 block_extent() {
  return machine().launch().block;
}
dim3 grid_extent() {
  return machine().launch().grid;
}

void run(const Launch& launch, void (*body)(const void*), const void* of) {
  machine().run(launch, body, of);
}
void set_seed(uint64_t seed) {
  machine().seed = seed;
  machine().launches = 0;
}
void set_block_limit(int64_t blocks) {
  machine().block_limit = blocks;
}
int64_t most_blocks() {
  return machine().block_limit > 0 ? int64_t{0x7FFFFFFF} : 16;
}
int64_t launches() {
  return machine().launches;
}

const char* checks() {
#ifdef GRF_EMULATED_ADDRESSES
  return "addresses";
#else
  return "races";
#endif
}

}  // namespace simt
}  // namespace grf
