"""A callback that measures the memory of a training."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from gru4rec_fast.profiling import LeakDetector, MemoryProfiler
from gru4rec_fast.training.callbacks import Callback, StepRecord


class MemoryCallback(Callback):
    """Records the memory of a training by a MemoryProfiler, and watches it with a LeakDetector.

        memory = MemoryCallback()
        model.fit("train.tsv", callbacks=[memory])
        print(memory.profiler.report().table(), memory.detector.report().describe())

    The detector takes a sample at each call of `on_step_end`; the fused step calls it about every 0.1 s. Its growth is
    per mini-batch.

    Args:
        profiler: the profiler; None makes one for the CPU.
        detector: the detector; None makes one that warns. Its `warm_up` counts mini-batches.
    """

    def __init__(self, profiler: MemoryProfiler | None = None, detector: LeakDetector | None = None) -> None:
        self.profiler, self.detector = profiler or MemoryProfiler(), detector or LeakDetector()
        self._contexts = ExitStack()

    def on_fit_start(self, trainer: Any) -> None:
        self.profiler.track(trainer.network, trainer.optimizer)
        self._contexts.enter_context(self.profiler)
        self._contexts.enter_context(self.detector)

    def on_step_end(self, trainer: Any, record: StepRecord) -> None:
        self.detector.step(record.mini_batches)

    def on_fit_end(self, trainer: Any, error: BaseException | None) -> None:
        self._contexts.close()
