// Shadow memory: records the last accesses of each byte of memory, and finds races.
//
// Two accesses of a byte race if they are of different threads, at least one is a write, they are not both atomic, and
// nothing orders them. Accesses are ordered by:
// - __syncthreads, within a block;
// - __syncwarp, among the threads of a warp that take part;
// - between blocks: what a thread does before __threadfence and an atomic operation comes before what another block
// does
//   after an atomic operation at the same address;
// - launches, which run one after another.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <unordered_map>
#include <vector>

namespace grf {
namespace simt {

constexpr int kWarpSize = 32;

// Logical time of a thread.
struct Clock {
  uint32_t time = 1;          // counts the synchronizations of this thread
  uint32_t barrier_time = 0;  // `time` after the last __syncthreads: accesses with a lower time come before the barrier
  // By lane of the warp: `time` of that thread at the last __syncwarp with it.
  std::array<uint32_t, kWarpSize> lane_times{};
};

// A recorded access.
struct AccessRecord {
  uint32_t block = 0;
  uint16_t thread = 0;
  bool atomic = false;
  uint32_t time = 0;         // of the thread; 0: no access yet
  uint32_t barriers = 0;     // __syncthreads of the block before the access
  uint32_t instruction = 0;  // offset in the library
};

// The accesses that are recorded of a byte, or of 4. Two unordered reads are enough: a write that races with any read
// races with one of them.
struct Cell {
  AccessRecord write;
  std::array<AccessRecord, 2> reads;
};

// The earlier one of two accesses that race.
struct Race {
  AccessRecord earlier;
  bool earlier_wrote = false;
};

class ShadowMemory {
 public:
  // Forgets all accesses: launches are ordered.
  void start_launch();
  void start_block(const std::vector<Clock>* clocks) {
    clocks_ = clocks;
    acquired_.clear();
  }

  // Records an access. If it races with an earlier one, returns true and fills `race`.
  bool access(uintptr_t address, size_t bytes, bool writes, const AccessRecord& record, Race* race);

  // Forgets the accesses of a range: the shared memory of an earlier block.
  void forget(uintptr_t address, size_t bytes);

  // Records an atomic operation. fenced: the thread has called __threadfence since its last write.
  void atomic(uintptr_t address, const AccessRecord& record, bool fenced);

 private:
  static constexpr size_t kPageBytes = 512;

  // One cell per 4 bytes, until an access that is smaller or unaligned needs one cell per byte.
  struct Page {
    size_t granule = 4;
    std::vector<Cell> cells = std::vector<Cell>(kPageBytes / 4);

    void split();
  };

  // An atomic operation after a __threadfence. It orders the earlier accesses of its thread, and those of its block
  // before its last __syncthreads.
  struct Release {
    uint32_t block, thread, barriers;
  };

  Page& page(uintptr_t page_index);
  bool is_ordered(const AccessRecord& earlier, const AccessRecord& later) const;
  void record_read(Cell& cell, const AccessRecord& record) const;
  bool access(Cell& cell, bool writes, const AccessRecord& record, Race* race) const;

  const std::vector<Clock>* clocks_ = nullptr;
  std::unordered_map<uintptr_t, Page> pages_;
  uintptr_t last_index_ = 0;
  Page* last_page_ = nullptr;
  std::unordered_map<uintptr_t, std::vector<Release>> releases_;  // by the address of the atomic operation
  std::vector<Release> acquired_;                                 // releases that the running block is ordered after
};

}  // namespace simt
}  // namespace grf
