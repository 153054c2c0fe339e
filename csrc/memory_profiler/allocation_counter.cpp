// The implementation of AllocationCounter (memory_profiler/allocation_counter.h).
#include "memory_profiler/allocation_counter.h"

#include <c10/util/Exception.h>
#include <torch/csrc/profiler/orchestration/observer.h>

#include <algorithm>
#include <chrono>
#include <utility>

namespace grf {
namespace profiler = torch::profiler::impl;

// Receives a report of each allocation and deallocation. torch casts every object in the slot of profilers to
// ProfilerStateBase; the state `Disabled` tells it that operators are not profiled. A mutex protects the counts,
// because torch passes the object on to some of its own threads.
class AllocationCounter::Observer final : public profiler::ProfilerStateBase {
 public:
  Observer()
      : ProfilerStateBase(profiler::ProfilerConfig(profiler::ProfilerState::Disabled, /*report_input_shapes=*/false,
                                                   /*profile_memory=*/true)) {}

  profiler::ActiveProfilerType profilerType() override { return profiler::ActiveProfilerType::NONE; }

  void reportMemoryUsage(void* /*data*/, int64_t bytes, size_t /*total_allocated*/, size_t /*total_reserved*/,
                         c10::Device device) override {
    if (!device.is_cpu()) return;
    const std::lock_guard<std::mutex> guard(mutex_);
    if (bytes > 0) {
      counts_.allocated_bytes += bytes;
      ++counts_.allocations;
    } else {
      counts_.freed_bytes -= bytes;
    }
    counts_.peak_bytes = std::max(counts_.peak_bytes, counts_.allocated_bytes - counts_.freed_bytes);
  }

  AllocationCounts read() {
    const std::lock_guard<std::mutex> guard(mutex_);
    const AllocationCounts counts = counts_;
    counts_.peak_bytes = counts_.allocated_bytes - counts_.freed_bytes;  // start of the next peak
    return counts;
  }

 private:
  std::mutex mutex_;
  AllocationCounts counts_{};
};

AllocationCounter::AllocationCounter() : observer_(std::make_shared<Observer>()) {}

// The thread keeps the observer alive until it ends, if the counter was never stopped.
AllocationCounter::~AllocationCounter() = default;

void AllocationCounter::start() {
  TORCH_CHECK(thread_ == std::thread::id(), "the counter is already started");
  const auto kind = c10::DebugInfoKind::PROFILER_STATE;
  TORCH_CHECK(c10::ThreadLocalDebugInfo::get(kind) == nullptr,
              "torch.profiler or another counter of allocations runs in this thread; stop it first");
  c10::ThreadLocalDebugInfo::_push(kind, observer_);
  thread_ = std::this_thread::get_id();
}

void AllocationCounter::stop() {
  const auto kind = c10::DebugInfoKind::PROFILER_STATE;
  TORCH_CHECK(thread_ == std::this_thread::get_id(), "the counter must be stopped by the thread that started it");
  c10::ThreadLocalDebugInfo::_pop(kind);
  thread_ = std::thread::id();
}

AllocationCounts AllocationCounter::read() {
  return observer_->read();
}

void AllocationCounter::begin_phase(const char* name) {
  const std::chrono::duration<double> now = std::chrono::steady_clock::now().time_since_epoch();
  phases_.push_back({name, now.count(), read()});
}

std::vector<PhaseBegin> AllocationCounter::take_phases() {
  return std::exchange(phases_, {});
}

}  // namespace grf
