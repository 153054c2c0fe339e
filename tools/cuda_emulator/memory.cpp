// Shared memory, and what becomes of an access.
#include <dlfcn.h>

#include <cstdio>
#include <cstring>

#include "cuda_emulator/machine_parts.h"

namespace grf {
namespace simt {
namespace {

struct Loaded {
  const char* begin;
  std::string path;
};

// This library as it lies in memory, by which instructions are named.
const Loaded& library() {
  static const Loaded loaded = [] {
    Dl_info info{};
    dladdr(reinterpret_cast<const void*>(&machine), &info);
    return Loaded{static_cast<const char*>(info.dli_fbase), info.dli_fname == nullptr ? "" : info.dli_fname};
  }();
  return loaded;
}

// File and line of an instruction of this library, where addr2line is at hand.
std::string line_of(uint32_t code) {
  if (code == 0) return "";
  char command[4096];
  std::snprintf(command, sizeof(command), "addr2line -e '%s' 0x%x 2>/dev/null", library().path.c_str(), code - 1);
  FILE* pipe = popen(command, "r");
  if (pipe == nullptr) return "";
  char line[1024] = "";
  const bool read = std::fgets(line, sizeof(line), pipe) != nullptr;
  pclose(pipe);
  std::string text = read ? line : "";
  text = text.substr(0, text.find_first_of(" \n"));
  const size_t slash = text.rfind('/');
  if (text.empty() || text[0] == '?') return "";
  return " (" + (slash == std::string::npos ? text : text.substr(slash + 1)) + ")";
}

}  // namespace

// State of a byte of the arena: 0 outside of every array, 1 not written yet, 2 written.
char* Machine::allocate_shared(size_t bytes, size_t alignment) {
  shared_used_ = (shared_used_ + alignment - 1) / alignment * alignment + bytes;
  if (shared_used_ > kSharedLimit) {
    fail("the block takes " + std::to_string(shared_used_) + " bytes of shared memory and more");
  }
#ifdef GRF_EMULATED_ADDRESSES
  allocations_.emplace_back(new char[bytes]);
  std::memset(allocations_.back().get(), 0xA5, bytes);
  return allocations_.back().get();
#else
  const auto base = reinterpret_cast<uintptr_t>(arena_.get());
  const uintptr_t at = (base + arena_used_ + kGap + alignment - 1) / alignment * alignment;
  const size_t offset = at - base;
  arena_used_ = offset + bytes + kGap;
  if (arena_used_ > kSharedArena) fail("too many arrays in shared memory");
  std::memset(arena_.get() + offset, 0xA5, bytes);
  std::memset(arena_state_.get() + offset, 1, bytes);
  return arena_.get() + offset;
#endif
}

void* Machine::shared_array(const void* tag, size_t bytes, size_t alignment) {
  for (const auto& [known, array] : arrays_) {
    if (known == tag) return array;
  }
  arrays_.emplace_back(tag, allocate_shared(bytes, alignment));
  return arrays_.back().second;
}

Stamp Machine::stamp(bool atomic, const void* code) const {
  const auto offset = static_cast<uint32_t>(static_cast<const char*>(code) - library().begin);
  return {block_number_, static_cast<uint16_t>(running_), atomic, clocks_[running_].now,
          barriers_,     code == nullptr ? 0 : offset};
}

void Machine::access(const void* address, size_t bytes, bool writes, bool atomic, const void* code) {
  if (stacks_.holds(address)) return;
  if (writes && !atomic) here().fenced = false;
  const auto* byte = static_cast<const char*>(address);
  if (byte >= arena_.get() && byte < arena_.get() + kSharedArena) {
    unsigned char* state = arena_state_.get() + (byte - arena_.get());
    for (size_t i = 0; i < bytes; ++i) {
      if (state[i] == 0) fail(thread_name(running_) + " reaches beyond its array in shared memory");
      if (state[i] == 1 && (!writes || atomic)) {
        fail(thread_name(running_) + " reads shared memory that no thread has written");
      }
      if (writes) state[i] = 2;
    }
  }
  Race race;
  const Stamp now = stamp(atomic, code);
  if (shadow_.access(reinterpret_cast<uintptr_t>(address), bytes, writes, now, &race)) {
    fail(describe(race, address, writes, code));
  }
}

std::string Machine::describe(const Race& race, const void* address, bool writes, const void* code) const {
  std::ostringstream text;
  const auto* byte = static_cast<const char*>(address);
  const bool shared = byte >= arena_.get() && byte < arena_.get() + kSharedArena;
  text << "race: " << thread_name(running_) << (writes ? " writes " : " reads ") << (shared ? "shared" : "global")
       << " memory at " << address << line_of(stamp(false, code).code) << ", which thread "
       << where(unflatten(race.before.thread, launch_.block));
  if (race.before.block != block_number_) text << " of another block";
  text << (race.before_wrote ? " wrote" : " read") << line_of(race.before.code)
       << (race.before.block != block_number_ ? " in this launch" : " with no barrier between");
  return text.str();
}

void Machine::before_atomic(const void* address) {
  if (random_.below(4) == 0) wait(State::ready);
  shadow_.atomic(reinterpret_cast<uintptr_t>(address), stamp(true, nullptr), here().fenced);
}

void fence() {
  machine().here().fenced = true;
}
void* shared_array(const void* tag, size_t bytes, size_t alignment) {
  return machine().shared_array(tag, bytes, alignment);
}
void* dynamic_shared() {
  if (machine().dynamic() == nullptr) machine().fail("the launch gave no dynamic shared memory");
  return machine().dynamic();
}
void check_failed(const char* text) {
  machine().fail(text, true);
}

AtomicAccess::AtomicAccess(const void* address, size_t bytes) {
  machine().before_atomic(address);
#ifndef GRF_EMULATED_ADDRESSES
  machine().access(address, bytes, true, true, __builtin_return_address(0));
#else
  (void)bytes;
#endif
}
void atomic_read(void* to, const void* from, size_t bytes) {
  std::memcpy(to, from, bytes);
}
void atomic_write(void* to, const void* from, size_t bytes) {
  std::memcpy(to, from, bytes);
}

void watch(const void* address, size_t bytes, bool writes, const void* code) {
  if (inside) {
    inside = false;  // what follows is the machine's own
    machine().access(address, bytes, writes, false, code);
    inside = true;
  }
}

}  // namespace simt
}  // namespace grf
