// Sectors and bank conflicts of memory accesses; access_counter.h describes them.
#include "cuda_emulator/access_counter.h"

#include <algorithm>
#include <array>
#include <utility>

#include "cuda_emulator/shadow_memory.h"

namespace grf {
namespace simt {

namespace {

constexpr uintptr_t kSectorBytes = 32, kWordBytes = 4, kBanks = 32;

// Addresses from `begin` to `end` - 1.
struct Range {
  uintptr_t begin, end;
};

// Merges ranges that overlap or are neighbors. Returns the rest in ascending order.
std::vector<Range> merge(std::vector<Range> ranges) {
  std::sort(ranges.begin(), ranges.end(), [](const Range& a, const Range& b) { return a.begin < b.begin; });
  std::vector<Range> merged;
  for (const Range& range : ranges) {
    if (merged.empty() || merged.back().end < range.begin) {
      merged.push_back(range);
    } else {
      merged.back().end = std::max(merged.back().end, range.end);
    }
  }
  return merged;
}

// Returns the number of units of `unit` addresses that hold n addresses.
int64_t units(uintptr_t n, uintptr_t unit) {
  return static_cast<int64_t>((n + unit - 1) / unit);
}

}  // namespace

void AccessCounter::finish_block(const std::string& kernel) {
  if (!enabled) return;
  AccessCounts& kernel_counts = counts[kernel];
  for (size_t first = 0; first < threads_.size(); first += kWarpSize) {
    using Instruction = std::pair<uint32_t, uintptr_t>;  // number of synchronizations before, and its address
    std::map<std::pair<Instruction, size_t>, std::vector<Access>> requests;
    for (size_t thread = first; thread < std::min(first + kWarpSize, threads_.size()); ++thread) {
      std::map<Instruction, size_t> n_earlier;
      for (const Access& access : threads_[thread].accesses) {
        const Instruction instruction(access.n_synchronizations, access.instruction);
        requests[{instruction, n_earlier[instruction]++}].push_back(access);
      }
    }
    for (const auto& [key, request] : requests) {
      if (request.front().is_shared) {
        count_shared(request, kernel_counts);
      } else {
        count_global(request, kernel_counts);
      }
    }
  }
  threads_.clear();
}

void AccessCounter::count_global(const std::vector<Access>& request, AccessCounts& counts) {
  std::vector<Range> ranges, sectors;
  for (const Access& access : request) ranges.push_back({access.address, access.address + access.bytes});
  uintptr_t bytes = 0, n_sectors = 0;
  for (const Range& range : merge(ranges)) {
    bytes += range.end - range.begin;
    sectors.push_back({range.begin / kSectorBytes, (range.end - 1) / kSectorBytes + 1});
  }
  for (const Range& range : merge(sectors)) n_sectors += range.end - range.begin;
  ++counts.requests;
  counts.sectors += static_cast<int64_t>(n_sectors);
  counts.least_sectors += units(bytes, kSectorBytes);
}

void AccessCounter::count_shared(const std::vector<Access>& request, AccessCounts& counts) {
  // The threads that are served together access at most 128 bytes.
  const size_t bytes = std::max<size_t>(request.front().bytes, kWordBytes);
  const size_t together = std::max<size_t>(kBanks * kWordBytes / bytes, 1);
  ++counts.shared_requests;
  for (size_t first = 0; first < request.size(); first += together) {
    std::vector<Range> words;
    for (size_t i = first; i < std::min(first + together, request.size()); ++i) {
      words.push_back({request[i].address / kWordBytes, (request[i].address + request[i].bytes - 1) / kWordBytes + 1});
    }
    std::array<int64_t, kBanks> words_of_bank{};
    uintptr_t n_words = 0;
    for (const Range& range : merge(words)) {
      n_words += range.end - range.begin;
      for (uintptr_t word = range.begin; word < range.end; ++word) ++words_of_bank[word % kBanks];
    }
    counts.cycles += *std::max_element(words_of_bank.begin(), words_of_bank.end());
    counts.least_cycles += units(n_words, kBanks);
  }
}

}  // namespace simt
}  // namespace grf
