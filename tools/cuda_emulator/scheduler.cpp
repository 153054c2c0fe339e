// The emulator's launches: the blocks of a grid run one after another, in random order. Within a block, a randomly
// chosen thread runs until it waits for other threads.
#include "cuda_emulator/interface.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <stdexcept>

#include "cuda_emulator/emulator.h"

#if defined(__x86_64__) && defined(__linux__)
// Defines grf_fiber_switch(saved_stack, next_stack) of fiber.h; the arguments are in the registers rdi and rsi. It
// pushes the registers that a function must preserve, and stores the stack pointer in *saved_stack. Then it continues
// on the next fiber's stack: it pops the registers that the next fiber pushed when it was suspended, and returns to the
// code of that fiber.
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

namespace {

// Returns the name of a kernel without its parentheses, template arguments and namespace.
std::string kernel_name(const std::string& expression) {
  const size_t end = std::min(expression.find_first_of("<)", 1), expression.size());
  const std::string name = expression.substr(0, end);
  return name.substr(name.find_last_of("(: ") + 1);
}

}  // namespace

Emulator& emulator() {
  static Emulator* instance = new Emulator;  // never destroyed: kernels may run while the process ends
  return *instance;
}

thread_local bool in_kernel = false;

void Emulator::run(const LaunchConfig& launch, void (*thread_body)(const void*), const void* closure) {
  const std::lock_guard<std::mutex> guard(mutex_);
  launch_ = launch;
  thread_body_ = thread_body;
  closure_ = closure;
  const auto refuse = [&](const char* reason) {
    throw std::runtime_error(std::string(launch.kernel) + ": invalid launch configuration: " + reason);
  };
  const dim3 &grid = launch.grid, &block = launch.block;
  if (!grid.x || !grid.y || !grid.z || !block.x || !block.y || !block.z) refuse("a dimension of 0");
  if (grid.x > 0x7FFFFFFFu || grid.y > 65535 || grid.z > 65535) refuse("more blocks than (2^31 - 1, 65535, 65535)");
  if (uint64_t{block.x} * block.y * block.z > 1024 || block.z > 64) refuse("more than 1024 threads, or 64 in z");
  const auto raised = max_dynamic_shared_bytes_.find(launch.function);
  const size_t max_dynamic = raised == max_dynamic_shared_bytes_.end() ? kDefaultShared : raised->second;
  if (launch.shared_bytes > std::min(max_dynamic, shared_limit)) {
    refuse("more dynamic shared memory than the limit of the kernel or of the GPU");
  }
  const std::string name = kernel_name(launch.kernel);
  if (const auto bound = launch_bounds.find(name); bound != launch_bounds.end()) {
    if (size_t{block.x} * block.y * block.z > bound->second) refuse("more threads than its __launch_bounds__");
  }
  n_threads_ = size_t{block.x} * block.y * block.z;
  // The factor is odd, so different seeds give different states; it spreads seeds that are close to each other.
  random_.state = seed * 0x2545F4914F6CDD1Du + static_cast<uint64_t>(++n_launches);
  failed_ = failed_check_ = false;
  shadow_memory_.start_launch();
  block_number_ = 0;
  for (const uint64_t flat_index : blocks_to_run()) {
    start_block(flat_index);
    run_block();
    access_counter.finish_block(name);
    ++block_number_;
    if (failed_) break;
  }
  if (!failed_) return;
  std::ostringstream text;
  text << failure_;
  if (failed_check_) throw std::invalid_argument(text.str());
  text << " [kernel " << launch_.kernel << ", block " << format_index(block_) << ", emulation seed " << seed
       << ", launch " << n_launches << "]";
  throw std::runtime_error(text.str());
}

size_t Emulator::max_dynamic_shared_bytes(const void* function) {
  const std::lock_guard<std::mutex> guard(mutex_);
  const auto found = max_dynamic_shared_bytes_.find(function);
  return found == max_dynamic_shared_bytes_.end() ? kDefaultShared : found->second;
}

void Emulator::set_max_dynamic_shared_bytes(const void* function, size_t bytes) {
  const std::lock_guard<std::mutex> guard(mutex_);
  max_dynamic_shared_bytes_[function] = bytes;
}

std::vector<uint64_t> Emulator::blocks_to_run() {
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

void Emulator::start_block(uint64_t flat_index) {
  block_ = unflatten(flat_index, launch_.grid);
  n_barriers_passed_ = 0;
  n_at_barrier_ = 0;
  n_unfinished_ = n_threads_;
  clocks_.assign(n_threads_, Clock());
  threads_.resize(n_threads_);
  ready_threads_.resize(n_threads_);
  for (size_t i = 0; i < n_threads_; ++i) {
    ready_threads_[i] = i;
    threads_[i] = Thread();
    threads_[i].index = unflatten(i, launch_.block);
    threads_[i].fiber.prepare(stacks_.stack(i), FiberStacks::bytes(i), &Emulator::enter_thread);
  }
  if (arena_bytes_used_ > 0) {
    std::memset(byte_states_.get(), kOutside, arena_bytes_used_);
    shadow_memory_.forget(reinterpret_cast<uintptr_t>(arena_.get()), arena_bytes_used_);
  }
  arena_bytes_used_ = shared_bytes_ = 0;
  shared_arrays_.clear();
  heap_arrays_.clear();
  dynamic_shared_ = launch_.shared_bytes > 0 ? allocate_shared(launch_.shared_bytes, 16) : nullptr;
  shadow_memory_.start_block(&clocks_);
  access_counter.start_block(n_threads_);
}

void Emulator::run_block() {
  while (n_unfinished_ > 0 && !failed_) {
    if (ready_threads_.empty()) {
      if (n_at_barrier_ == n_unfinished_) {
        release_barrier();
      } else {
        report_deadlock();
      }
      continue;
    }
    const size_t chosen = random_.below(ready_threads_.size());
    std::swap(ready_threads_[chosen], ready_threads_.back());
    const size_t thread = ready_threads_.back();
    ready_threads_.pop_back();
    resume(thread);
  }
}

void Emulator::resume(size_t thread) {
  running_index_ = thread;
  in_kernel = true;
  scheduler_.switch_to(threads_[thread].fiber);
  in_kernel = false;
  if (failed_) return;
  switch (threads_[thread].state) {
    case ThreadState::ready:
      ready_threads_.push_back(thread);
      break;
    case ThreadState::at_barrier:
      ++n_at_barrier_;
      break;
    case ThreadState::in_warp_operation:
      try_warp_operation(thread / kWarpSize);
      break;
    case ThreadState::finished:
      --n_unfinished_;
      break;
  }
}

void Emulator::enter_thread() {
  emulator().run_thread();
}

void Emulator::run_thread() {
  // Completes the scheduler's switch to this fiber. A fiber that was suspended does this in switch_to instead.
  Fiber::finish_switch(running_thread().fiber, &scheduler_);
  try {
    thread_body_(closure_);
  } catch (const std::exception& error) {
    record_failure(error.what());
  }
  finish_thread();
}

void Emulator::finish_thread() {
  wait(ThreadState::finished);
  std::abort();  // never reached: the scheduler does not resume a finished thread
}

void Emulator::wait(ThreadState state) {
  in_kernel = false;
  Thread& thread = running_thread();
  thread.state = state;
  thread.fiber.switch_to(scheduler_);
  in_kernel = true;
}

void Emulator::make_ready(size_t thread) {
  threads_[thread].state = ThreadState::ready;
  ready_threads_.push_back(thread);
}

void Emulator::fail(const std::string& message, bool from_check) {
  failed_check_ = from_check;
  record_failure(message);
  finish_thread();
}

// Functions that interface.h declares

dim3 thread_index() {
  return emulator().running_thread().index;
}
dim3 block_index() {
  return emulator().block();
}
dim3 block_extent() {
  return emulator().launch().block;
}
dim3 grid_extent() {
  return emulator().launch().grid;
}

void run(const LaunchConfig& launch, void (*thread_body)(const void*), const void* closure) {
  emulator().run(launch, thread_body, closure);
}
size_t max_dynamic_shared_bytes(const void* function) {
  return emulator().max_dynamic_shared_bytes(function);
}
void set_max_dynamic_shared_bytes(const void* function, size_t bytes) {
  emulator().set_max_dynamic_shared_bytes(function, bytes);
}
size_t shared_limit() {
  return emulator().shared_limit;
}
void set_shared_limit(size_t bytes) {
  if (bytes < kDefaultShared || bytes > kMaxSharedLimit) throw std::invalid_argument("bytes: must be 48 to 227 KB");
  emulator().shared_limit = bytes;
}
void set_launch_bounds(const std::map<std::string, unsigned>& threads) {
  emulator().launch_bounds = threads;
}
void set_seed(uint64_t seed) {
  emulator().seed = seed;
  emulator().n_launches = 0;
}
void set_block_limit(int64_t blocks) {
  emulator().block_limit = blocks;
}
int64_t max_grid_blocks() {
  constexpr int64_t kCudaGridLimit = 0x7FFFFFFF, kSmallMaximum = 16;  // interface.h says why it is small
  return emulator().block_limit > 0 ? kCudaGridLimit : kSmallMaximum;
}
void count_accesses(bool enabled) {
  emulator().access_counter.enabled = enabled;
  emulator().access_counter.counts.clear();
}
int64_t launches() {
  return emulator().n_launches;
}

const char* what_is_checked() {
#ifdef GRF_EMULATED_ADDRESSES
  return "addresses";
#else
  return "races";
#endif
}

}  // namespace simt
}  // namespace grf
