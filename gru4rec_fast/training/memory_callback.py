"""Measure the memory of a training: a callback, and what the callbacks for foreign trainers share with it."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from torch import nn
from torch.optim import Optimizer

from gru4rec_fast.profiling import LeakDetector, MemoryProfiler
from gru4rec_fast.training.callbacks import Callback, StepRecord


class TrainingMemory:
    """Runs a training in the contexts of a MemoryProfiler and a LeakDetector, and records one phase after another.

    Args:
        profiler: the profiler; None makes one for the CPU.
        detector: the detector; None makes one that warns.
    """

    def __init__(self, profiler: MemoryProfiler | None = None, detector: LeakDetector | None = None) -> None:
        self.profiler, self.detector = profiler or MemoryProfiler(), detector or LeakDetector()
        self._contexts = ExitStack()
        self._phase: Any = None

    def start(self, network: nn.Module | None = None, *optimizers: Optimizer) -> None:
        """Track a module with its optimizers, and enter both contexts; leave them first if they are entered.

        Raises:
            RuntimeError: another profiler records in this thread.
        """
        self.close()
        if network is not None:
            for optimizer in optimizers or (None,):
                self.profiler.track(network, optimizer)
        with ExitStack() as contexts:
            contexts.enter_context(self.profiler)
            contexts.enter_context(self.detector)
            self._contexts = contexts.pop_all()

    def begin_phase(self, name: str) -> None:
        """End the phase of the last call, and begin another; outside of the contexts, do nothing."""
        self.end_phase()
        self._phase = self.profiler.begin_phase(name)

    @property
    def has_phase(self) -> bool:
        """Whether a phase has begun and not ended."""
        return self._phase is not None

    def end_phase(self) -> None:
        """End the phase that `begin_phase` began, if there is one."""
        self.profiler.end_phase(self._phase)
        self._phase = None

    def close(self) -> None:
        """Leave both contexts. What was recorded stays in the reports; `start` continues it."""
        self.end_phase()
        self._contexts.close()


class MemoryCallback(TrainingMemory, Callback):
    """Records the memory of a training by a MemoryProfiler, and watches it with a LeakDetector.

        memory = MemoryCallback()
        model.fit("train.tsv", callbacks=[memory])
        print(memory.profiler.report().table(), memory.detector.report().describe())

    The detector takes a sample at each call of `on_step_end`; the fused step calls it about every 0.1 s. The growth
    that it reports is per mini-batch.

    Args:
        profiler: the profiler; None makes one for the CPU.
        detector: the detector; None makes one that warns. Its `warm_up` counts mini-batches.
    """

    def on_fit_start(self, trainer: Any) -> None:
        self.start(trainer.network, trainer.optimizer)

    def on_step_end(self, trainer: Any, record: StepRecord) -> None:
        self.detector.step(record.mini_batches)

    def on_fit_end(self, trainer: Any, error: BaseException | None) -> None:
        self.close()
