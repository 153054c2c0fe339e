// Shadow memory: who accessed each byte last, and when, from which races follow.
//
// Two accesses of one byte race if one of them is a write, not both are atomic, they are of two threads, and nothing
// orders them: __syncthreads within a block, __syncwarp among the threads of a warp that take part, and between blocks
// what a thread does before __threadfence and an atomic operation, for a block that then performs an atomic operation
// at the same place. Launches are in order.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <unordered_map>
#include <vector>

namespace grf {
namespace simt {

constexpr int kWarp = 32;

// What a thread has done and knows, as far as order goes.
struct Clock {
  uint32_t now = 1;         // counts the synchronizations that the thread took part in
  uint32_t at_barrier = 0;  // `now` after the last __syncthreads: what others did before theirs is behind this one
  std::array<uint32_t, kWarp> known{};  // by lane of the warp: `now` of that thread at the last __syncwarp with it
};

// One access as the shadow keeps it.
struct Stamp {
  uint32_t block = 0;
  uint16_t thread = 0;
  bool atomic = false;
  uint32_t now = 0;  // the thread's clock; 0: no access yet
  uint32_t barriers = 0;
  uint32_t code = 0;  // offset of the instruction in the library
};

struct Cell {
  Stamp write;
  std::array<Stamp, 2> reads;  // two readers that nothing orders are enough to tell a writer that races with one
};

// The kind of what was found, and both sides of it.
struct Race {
  Stamp before;
  bool before_wrote = false;
};

class Shadow {
 public:
  // Launches are in order, so that nothing of an earlier one is kept.
  void begin_launch();
  void begin_block(const std::vector<Clock>* clocks) {
    clocks_ = clocks;
    acquired_.clear();
  }

  // Notes an access; true where it races, and `race` tells with what.
  bool access(uintptr_t address, size_t bytes, bool writes, const Stamp& stamp, Race* race);

  // Forgets what was done to a range: the shared memory of an earlier block.
  void forget(uintptr_t address, size_t bytes);

  // An atomic operation of a thread that has (or has not) executed a fence since it last wrote.
  void atomic(uintptr_t address, const Stamp& stamp, bool fenced);

 private:
  static constexpr size_t kPage = 512;  // bytes to a page

  // Cells for each 4 bytes, until an access of fewer or across them asks for a cell for each byte.
  struct Page {
    size_t granule = 4;
    std::vector<Cell> cells = std::vector<Cell>(kPage / 4);

    void split();
  };

  struct Release {
    uint32_t block, thread, barriers;
  };

  Page& page(uintptr_t number);
  bool in_order(const Stamp& before, const Stamp& after) const;
  void note_read(Cell& cell, const Stamp& stamp) const;
  bool access(Cell& cell, bool writes, const Stamp& stamp, Race* race) const;

  const std::vector<Clock>* clocks_ = nullptr;
  std::unordered_map<uintptr_t, Page> pages_;
  uintptr_t last_number_ = 0;
  Page* last_page_ = nullptr;
  std::unordered_map<uintptr_t, std::vector<Release>> releases_;  // by the address of the atomic operation
  std::vector<Release> acquired_;                                 // by the block that runs
};

}  // namespace simt
}  // namespace grf
