// The emulator's shared memory, and its checks of memory accesses.
#include <dlfcn.h>

#include <cstdio>
#include <cstring>

#include "cuda_emulator/emulator.h"

namespace grf {
namespace simt {
namespace {

struct LoadedLibrary {
  const char* base;  // address where it is loaded
  std::string path;
};

// Returns the address and file of this shared library. Instructions are recorded as offsets from this address, because
// addr2line (see source_line) takes such offsets.
const LoadedLibrary& library() {
  static const LoadedLibrary loaded = [] {
    Dl_info info{};
    dladdr(reinterpret_cast<const void*>(&emulator), &info);
    return LoadedLibrary{static_cast<const char*>(info.dli_fbase), info.dli_fname == nullptr ? "" : info.dli_fname};
  }();
  return loaded;
}

// Returns " (file:line)" of the call that returns to this offset in the library, or "" if addr2line is not installed.
std::string source_line(uint32_t offset) {
  if (offset == 0) return "";
  char command[4096];
  std::snprintf(command, sizeof(command), "addr2line -e '%s' 0x%x 2>/dev/null", library().path.c_str(), offset - 1);
  FILE* pipe = popen(command, "r");
  if (pipe == nullptr) return "";
  char line[1024] = "";
  const bool has_line = std::fgets(line, sizeof(line), pipe) != nullptr;
  pclose(pipe);
  std::string text = has_line ? line : "";
  text = text.substr(0, text.find_first_of(" \n"));
  const size_t slash = text.rfind('/');
  if (text.empty() || text[0] == '?') return "";
  return " (" + (slash == std::string::npos ? text : text.substr(slash + 1)) + ")";
}

}  // namespace

char* Emulator::allocate_shared(size_t bytes, size_t alignment) {
  shared_bytes_ = (shared_bytes_ + alignment - 1) / alignment * alignment + bytes;
  // The limit of 48 KB holds for all shared memory, until the kernel's limit is raised.
  const bool raised = max_dynamic_shared_bytes_.count(launch_.function) > 0;
  const size_t limit = raised ? shared_limit : kDefaultShared;
  if (shared_bytes_ > limit) {
    fail("the block uses " + std::to_string(shared_bytes_) + " bytes of shared memory, more than " +
         std::to_string(limit >> 10) + " KB");
  }
#ifdef GRF_EMULATED_ADDRESSES  // AddressSanitizer detects accesses out of bounds, so each array is a heap allocation
  heap_arrays_.emplace_back(new char[bytes]);
  std::memset(heap_arrays_.back().get(), kFillByte, bytes);
  return heap_arrays_.back().get();
#else
  const auto base = reinterpret_cast<uintptr_t>(arena_.get());
  const uintptr_t aligned = (base + arena_bytes_used_ + kArrayGap + alignment - 1) / alignment * alignment;
  const size_t offset = aligned - base;
  arena_bytes_used_ = offset + bytes + kArrayGap;
  if (arena_bytes_used_ > kArenaBytes) fail("too many arrays in shared memory for the emulation");
  std::memset(arena_.get() + offset, kFillByte, bytes);
  std::memset(byte_states_.get() + offset, kUnwritten, bytes);
  return arena_.get() + offset;
#endif
}

// On a GPU, arguments are constants, and not in global memory.
bool Emulator::is_argument(const char* byte) const {
  const auto* const closure = static_cast<const char*>(closure_);
  return byte >= closure && byte < closure + launch_.closure_bytes;
}

// `tag` is an address that is unique to each GRF_SHARED declaration.
void* Emulator::shared_array(const void* tag, size_t bytes, size_t alignment) {
  for (const auto& [array_tag, array] : shared_arrays_) {
    if (array_tag == tag) return array;
  }
  shared_arrays_.emplace_back(tag, allocate_shared(bytes, alignment));
  return shared_arrays_.back().second;
}

AccessRecord Emulator::make_record(bool atomic, const void* instruction) const {
  const auto offset = static_cast<uint32_t>(static_cast<const char*>(instruction) - library().base);
  return {block_number_,      static_cast<uint16_t>(running_index_), atomic, clocks_[running_index_].time,
          n_barriers_passed_, instruction == nullptr ? 0 : offset};
}

void Emulator::access(const void* address, size_t bytes, bool writes, bool atomic, const void* instruction) {
  if (stacks_.contains(address)) return;
  if (writes && !atomic) running_thread().fenced = false;
  const auto* byte = static_cast<const char*>(address);
  const bool is_shared = byte >= arena_.get() && byte < arena_.get() + kArenaBytes;
  if (is_shared) {
    unsigned char* state = byte_states_.get() + (byte - arena_.get());
    for (size_t i = 0; i < bytes; ++i) {
      if (state[i] == kOutside) fail(thread_name(running_index_) + " accesses shared memory outside of its arrays");
      if (state[i] == kUnwritten && (!writes || atomic)) {
        fail(thread_name(running_index_) + " reads shared memory that no thread has written");
      }
      if (writes) state[i] = kWritten;
    }
  }
  if (access_counter.enabled && !is_argument(byte)) {
    access_counter.record(running_index_, instruction, reinterpret_cast<uintptr_t>(address), bytes, is_shared);
  }
  Race race;
  const AccessRecord access_record = make_record(atomic, instruction);
  if (shadow_memory_.access(reinterpret_cast<uintptr_t>(address), bytes, writes, access_record, &race)) {
    fail(describe(race, address, writes, instruction));
  }
}

std::string Emulator::describe(const Race& race, const void* address, bool writes, const void* instruction) const {
  std::ostringstream text;
  const auto* byte = static_cast<const char*>(address);
  const bool shared = byte >= arena_.get() && byte < arena_.get() + kArenaBytes;
  // make_record converts the address of the instruction to its offset in the library.
  text << "race: " << thread_name(running_index_) << (writes ? " writes " : " reads ") << (shared ? "shared" : "global")
       << " memory at " << address << source_line(make_record(false, instruction).instruction) << ", which thread "
       << format_index(unflatten(race.earlier.thread, launch_.block));
  if (race.earlier.block != block_number_) text << " of another block";
  text << (race.earlier_wrote ? " wrote" : " read") << source_line(race.earlier.instruction)
       << (race.earlier.block != block_number_ ? " in this launch" : " with no barrier between");
  return text.str();
}

void Emulator::misaligned(const void* address, size_t alignment, const char* file, unsigned line) {
  std::ostringstream text;
  text << thread_name(running_index_) << " accesses memory at " << address << ", which is not aligned to " << alignment
       << " bytes (" << file << ":" << line << ")";
  fail(text.str());
}

void Emulator::start_atomic(const void* address) {
  if (random_.below(4) == 0) wait(ThreadState::ready);  // other threads run first, so orders of atomics vary
  shadow_memory_.record_atomic(reinterpret_cast<uintptr_t>(address), make_record(true, nullptr),
                               running_thread().fenced);
}

void fence() {
  emulator().running_thread().fenced = true;
}
void* shared_array(const void* tag, size_t bytes, size_t alignment) {
  return emulator().shared_array(tag, bytes, alignment);
}
void* dynamic_shared() {
  char* const memory = emulator().dynamic_shared();
  if (memory == nullptr) emulator().fail("dynamic shared memory is used, but the launch has 0 bytes");
  return memory;
}
void misaligned(const void* address, size_t alignment, const char* file, unsigned line) {
  if (!in_kernel) return;
  in_kernel = false;
  emulator().misaligned(address, alignment, file, line);
}
void check_failed(const char* text) {
  emulator().fail(text, /*from_check=*/true);
}

AtomicAccess::AtomicAccess(const void* address, size_t bytes) {
  emulator().start_atomic(address);
#ifndef GRF_EMULATED_ADDRESSES
  emulator().access(address, bytes, true, true, __builtin_return_address(0));
#else
  (void)bytes;
#endif
}
// Plain copies are atomic here: emulated threads run one at a time and switch only when they call the emulator.
void atomic_read(void* target, const void* source, size_t bytes) {
  std::memcpy(target, source, bytes);
}
void atomic_write(void* target, const void* source, size_t bytes) {
  std::memcpy(target, source, bytes);
}

void on_access(const void* address, size_t bytes, bool writes, const void* instruction) {
  if (in_kernel) {
    in_kernel = false;  // accesses of the emulator itself are not checked
    emulator().access(address, bytes, writes, false, instruction);
    in_kernel = true;
  }
}

}  // namespace simt
}  // namespace grf
