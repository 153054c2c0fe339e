"""Memory hooks that any module or loop can switch on."""

from gru4rec_fast.profiling.memory import NULL_RECORD, MemoryRecord, NullMemoryRecord, PhaseMemory
from gru4rec_fast.profiling.meter import (
    MemoryMeter,
    PeakMemory,
    has_baseline,
    memory_meter,
    peak_memory_bytes,
    set_baseline,
)

__all__ = [
    "NULL_RECORD",
    "MemoryMeter",
    "MemoryRecord",
    "NullMemoryRecord",
    "PeakMemory",
    "PhaseMemory",
    "has_baseline",
    "memory_meter",
    "peak_memory_bytes",
    "set_baseline",
]
