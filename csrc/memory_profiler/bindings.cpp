// Binds AllocationCounter to Python, for gru4rec_fast/profiling/allocation_counters.py.
#include "memory_profiler/bindings.h"

#include "memory_profiler/allocation_counter.h"

namespace grf {
namespace {

namespace py = pybind11;

py::tuple to_tuple(const AllocationCounts& counts) {
  return py::make_tuple(counts.allocated_bytes, counts.freed_bytes, counts.allocations, counts.peak_bytes);
}

}  // namespace

void bind_memory(py::module_& m) {
  py::class_<AllocationCounter>(m, "AllocationCounter",
                                "Counts what torch's CPU allocator allocates and frees in one thread.")
      .def(py::init<>())
      .def("start", &AllocationCounter::start, "Start to count in this thread.")
      .def("stop", &AllocationCounter::stop, "Stop; must be called by the thread that called start.")
      .def(
          "read", [](AllocationCounter& counter) { return to_tuple(counter.read()); },
          "Return (allocated bytes, freed bytes, allocations) since the counter was created, and the peak of "
          "allocated - freed bytes since the previous call.")
      .def(
          "take_phases",
          [](AllocationCounter& counter) {
            py::list phases;
            for (const PhaseBegin& begin : counter.take_phases())
              phases.append(py::make_tuple(begin.name, begin.seconds, to_tuple(begin.counts)));
            return phases;
          },
          "Return (name, time, counts as of `read`) of each phase that native code has begun since the previous call.");
}

}  // namespace grf
