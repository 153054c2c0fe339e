#include "cuda_emulator/shadow.h"

#include <algorithm>

namespace grf {
namespace simt {

void Shadow::begin_launch() {
  pages_.clear();
  last_page_ = nullptr;
  releases_.clear();
}

bool Shadow::in_order(const Stamp& before, const Stamp& after) const {
  if (before.now == 0) return true;
  if (before.block == after.block) {
    if (before.thread == after.thread) return true;
    const Clock& theirs = (*clocks_)[before.thread];
    if (before.now < theirs.at_barrier) return true;
    const Clock& ours = (*clocks_)[after.thread];
    return before.thread / kWarp == after.thread / kWarp && before.now < ours.known[before.thread % kWarp];
  }
  return std::any_of(acquired_.begin(), acquired_.end(), [&](const Release& release) {
    return release.block == before.block && (release.thread == before.thread || before.barriers < release.barriers);
  });
}

void Shadow::note_read(Cell& cell, const Stamp& stamp) const {
  for (Stamp& read : cell.reads) {
    if ((read.block == stamp.block && read.thread == stamp.thread) || in_order(read, stamp)) {
      read = stamp;
      return;
    }
  }
}

bool Shadow::access(Cell& cell, bool writes, const Stamp& stamp, Race* race) const {
  if (!(cell.write.atomic && stamp.atomic) && !in_order(cell.write, stamp)) {
    *race = {cell.write, true};
    return true;
  }
  if (!writes) {
    note_read(cell, stamp);
    return false;
  }
  for (const Stamp& read : cell.reads) {
    if (!in_order(read, stamp)) {
      *race = {read, false};
      return true;
    }
  }
  cell.write = stamp;
  return false;
}

void Shadow::Page::split() {
  std::vector<Cell> bytes(kPage);
  for (size_t i = 0; i < kPage; ++i) bytes[i] = cells[i / granule];
  cells = std::move(bytes);
  granule = 1;
}

Shadow::Page& Shadow::page(uintptr_t number) {
  if (number != last_number_ || last_page_ == nullptr) {
    last_page_ = &pages_[number];
    last_number_ = number;
  }
  return *last_page_;
}

bool Shadow::access(uintptr_t address, size_t bytes, bool writes, const Stamp& stamp, Race* race) {
  const uintptr_t end = address + bytes;
  while (address < end) {
    Page& here = page(address / kPage);
    const size_t first = address % kPage, stop = std::min(kPage, first + (end - address));
    if ((first | stop) % here.granule != 0) here.split();
    for (size_t at = first / here.granule; at < stop / here.granule; ++at) {
      if (access(here.cells[at], writes, stamp, race)) return true;
    }
    address += stop - first;
  }
  return false;
}

void Shadow::forget(uintptr_t address, size_t bytes) {
  for (uintptr_t number = address / kPage; number <= (address + bytes) / kPage; ++number) pages_.erase(number);
  last_page_ = nullptr;
}

void Shadow::atomic(uintptr_t address, const Stamp& stamp, bool fenced) {
  std::vector<Release>& released = releases_[address];
  for (const Release& release : released) {
    if (release.block != stamp.block) acquired_.push_back(release);
  }
  if (fenced) released.push_back({stamp.block, stamp.thread, stamp.barriers});
}

}  // namespace simt
}  // namespace grf
