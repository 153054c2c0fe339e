// Fibers: execution contexts with stacks of their own in one operating system thread, switched explicitly.
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
// Pushes the callee-saved registers, stores the stack pointer in *saved_stack, and continues the fiber whose stack
// pointer is next_stack. Defined in scheduler.cpp.
extern "C" void grf_fiber_switch(void** saved_stack, void* next_stack);
#endif

namespace grf {
namespace simt {

// A suspended execution. A default-constructed fiber is for code that already runs; its switch_to stores the state.
class Fiber {
 public:
  // Makes the next switch to this fiber call entry() on the given stack. entry() must never return.
  void prepare(void* stack, size_t bytes, void (*entry)()) {
    bottom_ = stack;
    bytes_ = bytes;
#ifdef GRF_EMULATED_ADDRESSES
    __asan_unpoison_memory_region(stack, bytes);
    fake_stack_ = nullptr;
#endif
#if defined(__x86_64__) && defined(__linux__)
    auto* top = reinterpret_cast<uint64_t*>((reinterpret_cast<uintptr_t>(stack) + bytes) & ~uintptr_t{15});
    *--top = 0;  // in place of entry's return address; keeps the stack aligned as after a call
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

  // Suspends the running code in this fiber and continues `other`. Returns when another fiber switches back.
  void switch_to(Fiber& other) {
#ifdef GRF_EMULATED_ADDRESSES
    __sanitizer_start_switch_fiber(&fake_stack_, other.bottom_, other.bytes_);
#endif
#if defined(__x86_64__) && defined(__linux__)
    grf_fiber_switch(&stack_pointer_, other.stack_pointer_);
#else
    swapcontext(&context_, &other.context_);
#endif
    finish_switch(*this);
  }

  // Tells AddressSanitizer that the switch to `current` is complete. A new fiber's entry() must call this function
  // first. `previous` is the fiber that was suspended by the switch; its stack is recorded. In a fiber that continues,
  // switch_to calls this function.
  static void finish_switch(Fiber& current, Fiber* previous = nullptr) {
#ifdef GRF_EMULATED_ADDRESSES
    const void* bottom;
    size_t bytes;
    __sanitizer_finish_switch_fiber(current.fake_stack_, &bottom, &bytes);
    if (previous != nullptr) {
      previous->bottom_ = bottom;
      previous->bytes_ = bytes;
    }
#else
    (void)current;
    (void)previous;
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

// The stacks of the 1024 threads that a block can have, in one memory mapping. Only pages that are written take memory.
class FiberStacks {
 public:
  static constexpr size_t kBytes = size_t{256} << 10;
  static constexpr size_t kCount = 1024;

  FiberStacks() {
    void* memory =
        mmap(nullptr, kBytes * kCount, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    first_ = static_cast<char*>(memory);
  }
  ~FiberStacks() { munmap(first_, kBytes * kCount); }
  FiberStacks(const FiberStacks&) = delete;
  FiberStacks& operator=(const FiberStacks&) = delete;

  // The sizes differ, because the tops of equal stacks would map to the same cache sets.
  static size_t bytes(size_t thread) { return kBytes - thread % 64 * 192; }
  char* stack(size_t thread) { return first_ + thread * kBytes; }
  bool contains(const void* address) const {
    const auto* byte = static_cast<const char*>(address);
    return byte >= first_ && byte < first_ + kBytes * kCount;
  }

 private:
  char* first_;
};

}  // namespace simt
}  // namespace grf
