"""What the tests of all memory callbacks ask of a callback with a profiler and a detector."""

from __future__ import annotations

import pytest

from gru4rec_fast.profiling import active_profiler
from gru4rec_fast.training.memory_callback import TrainingMemory


def calls(memory: TrainingMemory) -> dict[str, int]:
    """Return the number of calls of each phase but the root."""
    return {"/".join(phase.path): phase.calls for phase in memory.profiler.report().phases[1:]}


def assert_nothing_is_recorded(memory: TrainingMemory) -> None:
    """Fail if the profiler or the detector of a callback is still active in this thread."""
    assert active_profiler() is None
    with pytest.raises(RuntimeError, match="needs the context"):
        memory.detector.step()
