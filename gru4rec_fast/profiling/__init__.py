"""Measurement of memory: which phase, module and tensor takes it, and whether it grows."""

from gru4rec_fast.profiling.device_memory import (
    MemoryMeter,
    PeakMemory,
    memory_meter,
    peak_memory_bytes,
    process_baseline,
    set_baseline,
)
from gru4rec_fast.profiling.growth import Growth
from gru4rec_fast.profiling.leak_detector import LeakDetector, LeakReport, MemoryLeakError, MemoryLeakWarning
from gru4rec_fast.profiling.memory_profiler import MemoryProfiler, active_profiler, phase
from gru4rec_fast.profiling.memory_report import MemoryReport, PhaseMemory
from gru4rec_fast.profiling.out_of_memory import (
    OutOfMemoryGuard,
    OutOfMemoryWarning,
    attempts,
    explain_oom,
    is_out_of_memory,
    map_parts,
    oom_guard,
)

__all__ = [
    "Growth",
    "LeakDetector",
    "LeakReport",
    "MemoryLeakError",
    "MemoryLeakWarning",
    "MemoryMeter",
    "MemoryProfiler",
    "MemoryReport",
    "OutOfMemoryGuard",
    "OutOfMemoryWarning",
    "PeakMemory",
    "PhaseMemory",
    "active_profiler",
    "attempts",
    "explain_oom",
    "is_out_of_memory",
    "map_parts",
    "memory_meter",
    "oom_guard",
    "peak_memory_bytes",
    "phase",
    "process_baseline",
    "set_baseline",
]
