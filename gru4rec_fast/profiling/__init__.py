"""Measurement of memory: current and peak bytes of training phases and of modules."""

from gru4rec_fast.profiling.device_memory import (
    MemoryMeter,
    PeakMemory,
    memory_meter,
    peak_memory_bytes,
    process_baseline,
    set_baseline,
)
from gru4rec_fast.profiling.memory_record import NULL_RECORD, MemoryRecord, NullMemoryRecord, PhaseMemory

__all__ = [
    "NULL_RECORD",
    "MemoryMeter",
    "MemoryRecord",
    "NullMemoryRecord",
    "PeakMemory",
    "PhaseMemory",
    "memory_meter",
    "peak_memory_bytes",
    "process_baseline",
    "set_baseline",
]
