// Every access of memory in a kernel, as the compiler reports it: kernels are compiled with -fsanitize=thread, which
// calls a function before each access, and these are the functions. The sanitizer's own library is not linked.
#include <cstddef>
#include <cstdint>

namespace grf {
namespace simt {
void watch(const void* address, size_t bytes, bool writes, const void* code);
}  // namespace simt
}  // namespace grf

#define GRF_HOOK(name, bytes, writes)                                            \
  void name(void* address) {                                                     \
    ::grf::simt::watch(address, (bytes), (writes), __builtin_return_address(0)); \
  }
#define GRF_HOOKS(bytes)                               \
  GRF_HOOK(__tsan_read##bytes, bytes, false)           \
  GRF_HOOK(__tsan_write##bytes, bytes, true)           \
  GRF_HOOK(__tsan_unaligned_read##bytes, bytes, false) \
  GRF_HOOK(__tsan_unaligned_write##bytes, bytes, true) \
  GRF_HOOK(__tsan_volatile_read##bytes, bytes, false)  \
  GRF_HOOK(__tsan_volatile_write##bytes, bytes, true)

extern "C" {

GRF_HOOKS(1)
GRF_HOOKS(2)
GRF_HOOKS(4)
GRF_HOOKS(8)
GRF_HOOKS(16)

void __tsan_read_range(void* address, size_t bytes) {
  ::grf::simt::watch(address, bytes, false, __builtin_return_address(0));
}
void __tsan_write_range(void* address, size_t bytes) {
  ::grf::simt::watch(address, bytes, true, __builtin_return_address(0));
}
// The guard of a static variable in a function.
char __tsan_atomic8_load(const volatile char* address, int) {
  return __atomic_load_n(address, __ATOMIC_ACQUIRE);
}
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_read(void**) {}
void __tsan_vptr_update(void**, void*) {}

}  // extern "C"
