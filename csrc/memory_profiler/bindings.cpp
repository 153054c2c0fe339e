// Binds AllocationCounter to Python, for gru4rec_fast/profiling/allocation_counters.py.
#include "memory_profiler/bindings.h"

#include "memory_profiler/allocation_counter.h"

namespace grf {

void bind_memory(pybind11::module_& m) {
  namespace py = pybind11;
  py::class_<AllocationCounter>(m, "AllocationCounter",
                                "Counts what torch's CPU allocator allocates and frees in one thread.")
      .def(py::init<>())
      .def("start", &AllocationCounter::start, "Start to count in this thread.")
      .def("stop", &AllocationCounter::stop, "Stop; must be called by the thread that called start.")
      .def(
          "read",
          [](AllocationCounter& counter) {
            const AllocationCounts counts = counter.read();
            return py::make_tuple(counts.allocated_bytes, counts.freed_bytes, counts.allocations, counts.peak_bytes);
          },
          "Return (allocated bytes, freed bytes, allocations) since the counter was created, and the peak of "
          "allocated - freed bytes since the previous call.");
}

}  // namespace grf
