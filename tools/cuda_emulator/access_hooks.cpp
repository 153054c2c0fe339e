// The functions that kernels call before each memory access. Kernels are compiled with -fsanitize=thread, so the
// compiler inserts these calls. The sanitizer's own library, which usually defines the functions, is not linked.
#include <cstddef>
#include <cstdint>

namespace grf {
namespace simt {
// Both are defined in memory.cpp.
// Checks an access. `instruction` is the address where the call returns to.
void on_access(const void* address, size_t bytes, bool writes, const void* instruction);
// Reports an access at an address that is not a multiple of `alignment`.
void misaligned(const void* address, size_t alignment, const char* file, unsigned line);
}  // namespace simt
}  // namespace grf

#define GRF_HOOK(name, bytes, writes)                                                \
  void name(void* address) {                                                         \
    ::grf::simt::on_access(address, (bytes), (writes), __builtin_return_address(0)); \
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
  ::grf::simt::on_access(address, bytes, false, __builtin_return_address(0));
}
void __tsan_write_range(void* address, size_t bytes) {
  ::grf::simt::on_access(address, bytes, true, __builtin_return_address(0));
}
// Called if the address of an access is not aligned as its type is (-fsanitize=alignment). The CPU would allow the
// access; a GPU stops the kernel.
struct UndefinedBehavior {  // layout of UndefinedBehaviorSanitizer's TypeMismatchData
  const char* file;
  uint32_t line, column;
  const void* type;
  unsigned char log2_alignment, kind;
};
void __ubsan_handle_type_mismatch_v1(const UndefinedBehavior* where, const void* address) {
  ::grf::simt::misaligned(address, size_t{1} << where->log2_alignment, where->file, where->line);
}
// Called to read the guard of a function's static variable, which says whether the variable is initialized.
char __tsan_atomic8_load(const volatile char* address, int) {
  return __atomic_load_n(address, __ATOMIC_ACQUIRE);
}
// The compiler also inserts calls of the following functions; the emulator needs none of them.
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_read(void**) {}
void __tsan_vptr_update(void**, void*) {}

}  // extern "C"
