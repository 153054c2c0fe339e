// Detection of races; shadow_memory.h describes it.
#include "cuda_emulator/shadow_memory.h"

#include <algorithm>

namespace grf {
namespace simt {

void ShadowMemory::start_launch() {
  pages_.clear();
  last_page_ = nullptr;
  releases_.clear();
}

bool ShadowMemory::is_ordered(const AccessRecord& earlier, const AccessRecord& later) const {
  if (earlier.time == 0) return true;  // no access so far
  if (earlier.block == later.block) {
    if (earlier.thread == later.thread) return true;
    const Clock& earlier_clock = (*clocks_)[earlier.thread];
    if (earlier.time < earlier_clock.barrier_time) return true;  // a __syncthreads since then
    const Clock& later_clock = (*clocks_)[later.thread];
    // A __syncwarp of both threads since then.
    return earlier.thread / kWarpSize == later.thread / kWarpSize &&
           earlier.time < later_clock.lane_times[earlier.thread % kWarpSize];
  }
  // Another block's access: ordered by an atomic operation after a __threadfence (see Release in shadow_memory.h).
  return std::any_of(acquired_.begin(), acquired_.end(), [&](const Release& release) {
    return release.block == earlier.block &&
           (release.thread == earlier.thread || earlier.n_barriers < release.n_barriers);
  });
}

void ShadowMemory::record_read(Cell& cell, const AccessRecord& record) const {
  for (AccessRecord& read : cell.reads) {
    if ((read.block == record.block && read.thread == record.thread) || is_ordered(read, record)) {
      read = record;
      return;
    }
  }
  // The order of this read and both recorded ones is not determined. The recorded ones are enough (see Cell).
}

bool ShadowMemory::access(Cell& cell, bool writes, const AccessRecord& record, Race* race) const {
  if (!(cell.write.atomic && record.atomic) && !is_ordered(cell.write, record)) {
    *race = {cell.write, true};
    return true;
  }
  if (!writes) {
    record_read(cell, record);
    return false;
  }
  for (const AccessRecord& read : cell.reads) {
    if (!is_ordered(read, record)) {
      *race = {read, false};
      return true;
    }
  }
  cell.write = record;
  return false;
}

void ShadowMemory::Page::split() {
  std::vector<Cell> bytes(kPageBytes);
  for (size_t i = 0; i < kPageBytes; ++i) bytes[i] = cells[i / bytes_per_cell];
  cells = std::move(bytes);
  bytes_per_cell = 1;
}

ShadowMemory::Page& ShadowMemory::page(uintptr_t page_index) {
  if (page_index != last_page_index_ || last_page_ == nullptr) {
    last_page_ = &pages_[page_index];
    last_page_index_ = page_index;
  }
  return *last_page_;
}

bool ShadowMemory::access(uintptr_t address, size_t bytes, bool writes, const AccessRecord& record, Race* race) {
  const uintptr_t end = address + bytes;
  while (address < end) {
    Page& touched = page(address / kPageBytes);
    const size_t first = address % kPageBytes, stop = std::min(kPageBytes, first + (end - address));
    if ((first | stop) % touched.bytes_per_cell != 0) touched.split();
    for (size_t cell = first / touched.bytes_per_cell; cell < stop / touched.bytes_per_cell; ++cell) {
      if (access(touched.cells[cell], writes, record, race)) return true;
    }
    address += stop - first;
  }
  return false;
}

void ShadowMemory::forget(uintptr_t address, size_t bytes) {
  const uintptr_t last = (address + bytes) / kPageBytes;
  for (uintptr_t page_index = address / kPageBytes; page_index <= last; ++page_index) pages_.erase(page_index);
  last_page_ = nullptr;
}

void ShadowMemory::record_atomic(uintptr_t address, const AccessRecord& record, bool fenced) {
  std::vector<Release>& released = releases_[address];
  for (const Release& release : released) {
    if (release.block != record.block) acquired_.push_back(release);
  }
  if (fenced) released.push_back({record.block, record.thread, record.n_barriers});
}

}  // namespace simt
}  // namespace grf
