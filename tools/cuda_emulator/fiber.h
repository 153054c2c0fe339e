// Fibers: stacks of their own in one thread of the operating system, switched by hand.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <new>

#if !(defined(__x86_64__) && defined(__linux__))
#include <ucontext.h>
#endif

#ifdef GRF_EMULATED_ADDRESSES
extern "C" void __sanitizer_start_switch_fiber(void** fake_stack, const void* bottom, size_t size);
extern "C" void __sanitizer_finish_switch_fiber(void* fake_stack, const void** bottom, size_t* size);
extern "C" void __asan_unpoison_memory_region(const volatile void* address, size_t size);
#endif

#if defined(__x86_64__) && defined(__linux__)
// Saves the registers that a callee keeps, and where the stack is; goes on where another fiber stopped.
extern "C" void grf_fiber_switch(void** save, void* load);
#endif

namespace grf {
namespace simt {

// A place to go on from. The default one is filled by switching away from it.
class Fiber {
 public:
  // Makes the next switch to this fiber call entry() on the given stack. entry never returns: it switches away.
  void prepare(void* stack, size_t bytes, void (*entry)()) {
    bottom_ = stack;
    bytes_ = bytes;
#ifdef GRF_EMULATED_ADDRESSES
    __asan_unpoison_memory_region(stack, bytes);
    fake_stack_ = nullptr;
#endif
#if defined(__x86_64__) && defined(__linux__)
    auto* top = reinterpret_cast<uint64_t*>((reinterpret_cast<uintptr_t>(stack) + bytes) & ~uintptr_t{15});
    *--top = 0;  // where a return address of entry would be, which keeps the stack aligned as after a call
    *--top = reinterpret_cast<uint64_t>(entry);
    for (int i = 0; i < 6; ++i) *--top = 0;  // rbp, rbx, r12 to r15
    stack_pointer_ = top;
#else
    getcontext(&context_);
    context_.uc_stack.ss_sp = stack;
    context_.uc_stack.ss_size = bytes;
    context_.uc_link = nullptr;
    makecontext(&context_, entry, 0);
#endif
  }

  void switch_to(Fiber& other) {
#ifdef GRF_EMULATED_ADDRESSES
    __sanitizer_start_switch_fiber(&fake_stack_, other.bottom_, other.bytes_);
#endif
#if defined(__x86_64__) && defined(__linux__)
    grf_fiber_switch(&stack_pointer_, other.stack_pointer_);
#else
    swapcontext(&context_, &other.context_);
#endif
    arrived(*this);
  }

  // To be called first of all by an entry: `from` is the fiber that was left for it, whose stack is noted.
  static void arrived(Fiber& here, Fiber* from = nullptr) {
#ifdef GRF_EMULATED_ADDRESSES
    const void* bottom;
    size_t bytes;
    __sanitizer_finish_switch_fiber(here.fake_stack_, &bottom, &bytes);
    if (from != nullptr) {
      from->bottom_ = bottom;
      from->bytes_ = bytes;
    }
#else
    (void)here;
    (void)from;
#endif
  }

 private:
  const void* bottom_ = nullptr;
  size_t bytes_ = 0;
#ifdef GRF_EMULATED_ADDRESSES
  void* fake_stack_ = nullptr;
#endif
#if defined(__x86_64__) && defined(__linux__)
  void* stack_pointer_ = nullptr;
#else
  ucontext_t context_;
#endif
};

// The stacks of the 1024 threads a block can have, in one piece, of which only what is used takes memory.
class Stacks {
 public:
  static constexpr size_t kBytes = size_t{256} << 10;
  static constexpr size_t kCount = 1024;

  Stacks() {
    void* memory =
        mmap(nullptr, kBytes * kCount, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    first_ = static_cast<char*>(memory);
  }
  ~Stacks() { munmap(first_, kBytes * kCount); }
  Stacks(const Stacks&) = delete;
  Stacks& operator=(const Stacks&) = delete;

  // Stacks whose tops are of different lengths away from each other: equal ones would meet in the same cache lines.
  static size_t bytes(size_t number) { return kBytes - number % 64 * 192; }
  char* stack(size_t number) { return first_ + number * kBytes; }
  bool holds(const void* address) const {
    const auto* byte = static_cast<const char*>(address);
    return byte >= first_ && byte < first_ + kBytes * kCount;
  }

 private:
  char* first_;
};

}  // namespace simt
}  // namespace grf
