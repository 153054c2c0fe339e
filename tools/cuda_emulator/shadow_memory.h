// Shadow memory: records the last accesses of each byte of memory, and detects races.
//
// Two accesses of a byte race if different threads make them, at least one is a write, they are not both atomic, and
// their order is not determined. The order of accesses is determined by:
// - __syncthreads, within a block;
// - __syncwarp, among the threads of a warp that call it;
// - __threadfence and an atomic operation after it, between blocks: all earlier accesses of the calling thread come
//   before those that another block makes after its next atomic operation at the same address;
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

// Logical time of a thread. A lane is a thread's position in its warp.
struct Clock {
  uint32_t time = 1;          // counts the synchronizations of this thread
  uint32_t barrier_time = 0;  // `time` after the last __syncthreads: accesses with a lower time come before the barrier
  // For each lane of the warp: the `time` of that lane at the last __syncwarp that it and this thread called.
  std::array<uint32_t, kWarpSize> lane_times{};
};

// A recorded access.
struct AccessRecord {
  uint32_t block = 0;  // number of blocks of this launch that ran before
  uint16_t thread = 0;
  bool atomic = false;
  uint32_t time = 0;         // Clock::time of the thread; 0 means that there was no access
  uint32_t n_barriers = 0;   // number of __syncthreads that the block has completed
  uint32_t instruction = 0;  // offset of the instruction in the library; 0 if unknown
};

// The recorded accesses of one byte, or of 4 bytes (see Page). Two reads whose order is not determined are enough: a
// write that races with any read races with one of them.
struct Cell {
  AccessRecord write;
  std::array<AccessRecord, 2> reads;
};

// The earlier of two accesses that race.
struct Race {
  AccessRecord earlier;
  bool earlier_wrote = false;
};

class ShadowMemory {
 public:
  // Forgets all accesses: they come before those of this launch.
  void start_launch();
  // Must be called before a block runs. clocks: the clocks of its threads.
  void start_block(const std::vector<Clock>* clocks) {
    clocks_ = clocks;
    acquired_.clear();
  }

  // Records an access. If it races with an earlier one, returns true and fills `race`.
  bool access(uintptr_t address, size_t bytes, bool writes, const AccessRecord& record, Race* race);

  // Forgets the accesses of an address range: the next block reuses the memory of an earlier block's shared arrays.
  void forget(uintptr_t address, size_t bytes);

  // Records an atomic operation. fenced: the thread has called __threadfence since its last write.
  void record_atomic(uintptr_t address, const AccessRecord& record, bool fenced);

 private:
  static constexpr size_t kPageBytes = 512;

  // The cells of kPageBytes bytes: one per 4 bytes, until the first access that is smaller or unaligned; then one per
  // byte.
  struct Page {
    size_t bytes_per_cell = 4;
    std::vector<Cell> cells = std::vector<Cell>(kPageBytes / 4);

    void split();  // into one cell per byte
  };

  // An atomic operation after a __threadfence. It orders the earlier accesses of its thread, and the accesses of its
  // block before the block's last __syncthreads.
  struct Release {
    uint32_t block, thread, n_barriers;
  };

  Page& page(uintptr_t page_index);  // creates the page if it does not exist
  // Returns whether the order of two accesses is determined.
  bool is_ordered(const AccessRecord& earlier, const AccessRecord& later) const;
  void record_read(Cell& cell, const AccessRecord& record) const;
  // Records an access of one cell. If it races with an earlier one, returns true and fills `race`.
  bool access(Cell& cell, bool writes, const AccessRecord& record, Race* race) const;

  const std::vector<Clock>* clocks_ = nullptr;
  std::unordered_map<uintptr_t, Page> pages_;
  uintptr_t last_page_index_ = 0;
  Page* last_page_ = nullptr;
  std::unordered_map<uintptr_t, std::vector<Release>> releases_;  // by the address of the atomic operation
  std::vector<Release> acquired_;  // releases that come before all further accesses of the running block
};

}  // namespace simt
}  // namespace grf
