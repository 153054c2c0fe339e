"""Find out whether a loop's memory grows with every step, and name what grows."""

from __future__ import annotations

import sys
import time
import warnings
from dataclasses import dataclass
from typing import Self, TextIO

import torch

from gru4rec_fast import _backend
from gru4rec_fast.profiling.allocation_counters import AllocationCounter, allocation_counter
from gru4rec_fast.profiling.device_memory import memory_meter, resident_bytes
from gru4rec_fast.profiling.growth import Growth, GrowthEstimator
from gru4rec_fast.profiling.memory_profiler import active_profiler
from gru4rec_fast.profiling.memory_report import format_bytes
from gru4rec_fast.profiling.object_trace import GROWING, ObjectTrace

# A process that has grown by less is not called leaking. Without a leak, the free lists of Python and malloc need some
# MiB in the first thousands of steps.
_PROCESS_BYTES = 8 * 2**20
_SECONDS_BETWEEN_LINES = 1.0  # minimum time between two lines of `live`, unless it is a terminal


class MemoryLeakWarning(UserWarning):
    """A loop's memory grows with every step."""


class MemoryLeakError(RuntimeError):
    """Raised by `LeakDetector(on_leak="raise")`. `report` is the LeakReport."""

    def __init__(self, report: LeakReport) -> None:
        super().__init__(report.describe())
        self.report = report


@dataclass(frozen=True)
class LeakReport:
    """What a LeakDetector found.

    Attributes:
        steps: number of steps so far.
        allocator: growth of the bytes that torch's allocator has given out; None while there are too few steps.
        process: growth of the resident size of the process, in bytes; None while there are too few steps.
        objects: growth of the number of objects and other blocks in the interpreter's memory; None likewise.
        python_bytes: growth per step, in bytes, of the Python objects of all allocation sites that grow, of which
            `sites` has the first; 0.0 before they were traced. The elements of tensors are not counted.
        is_leaking: whether allocator, process or objects grow steadily; the objects by more than `min_growth` bytes.
        types: (name, objects per step) of Python types whose numbers grow, most first; empty without a leak. Types
            without references to other objects, such as bytes, are not among them.
        tensors: (shape, dtype and device, tensors per step) likewise.
        sites: (file:line, source line, bytes per step, objects per step) of Python code whose allocations grow.
    """

    steps: int
    allocator: Growth | None
    process: Growth | None
    objects: Growth | None
    python_bytes: float
    is_leaking: bool
    types: list[tuple[str, float]]
    tensors: list[tuple[str, float]]
    sites: list[tuple[str, str, float, float]]

    def describe(self) -> str:
        """Return the report as text."""
        if self.allocator is None or self.process is None or self.objects is None:
            return f"{self.steps} steps are too few to say whether the memory grows"
        lines = [
            f"the memory {'grows' if self.is_leaking else 'does not grow'} with every step ({self.steps} steps):",
            f"  torch's allocator: {_describe_growth(self.allocator)}",
            f"  process: {_describe_growth(self.process)}",
            f"  Python: {self.objects.per_step:+.2f} objects, {format_bytes(self.python_bytes)} per step",
        ]
        lines += [f"  tensors: {n:+.2f} per step of {name}" for name, n in self.tensors]
        lines += [f"  objects: {n:+.2f} per step of type {name}" for name, n in self.types]
        lines += [
            f"  allocated at {place}: {count:+.2f} objects, {format_bytes(size)} per step: {source}"
            for place, source, size, count in self.sites
        ]
        if self.is_leaking and len(lines) == 4:
            lines.append("  no Python object grows in number: the memory is allocated by a library")
        return "\n".join(lines)


def _describe_growth(growth: Growth) -> str:
    low, high = format_bytes(growth.low), format_bytes(growth.high)
    return f"{format_bytes(growth.per_step)} per step (99.9 % confidence: {low} to {high})"


def _is_steady(growth: Growth | None) -> bool:
    return growth is not None and growth.is_steady


class LeakDetector:
    """Watches the memory of a loop, and says what grows if the memory grows with every step.

        with LeakDetector() as detector:
            for batch in loader:
                train(batch)
                detector.step()

    The steps of the warm-up are ignored. After about 200 further steps there is an estimate of the growth per step: of
    torch's allocator, of the resident size of the process, and of the number of Python objects. If one of them grows
    steadily, the detector traces 128 steps by gc and tracemalloc, which makes them slower, and compares the Python
    objects and the allocation sites of the last 96. If this confirms a leak, it warns or raises an error, once. If not,
    it traces again after twice as many steps. (In the first thousands of steps, the interpreter's free lists may be
    what grows.) A leak that only the size of the process shows, e.g. of a C library, is found once the process has
    grown by 8 MiB. The detector needs a constant amount of memory. On the CPU it counts the allocations of the thread
    that entered the context. Without native kernels, that counter itself makes Python objects, so a growth of Python
    objects alone is reported, but is not called a leak.

    Args:
        device: the device of the allocator.
        warm_up: number of steps at the beginning that are ignored.
        min_growth: growth in bytes per step up to which there is no leak.
        on_leak: "warn" (a MemoryLeakWarning) or "raise" (a MemoryLeakError).
        live: a text file such as sys.stderr, to which a line with the current memory is written in every step; on a
            terminal it replaces the line of the previous step, elsewhere there is at most one line per second.

    Raises:
        ValueError: an argument is out of range. TypeError: `live` is no text file.
    """

    def __init__(
        self,
        device: torch.device | str = "cpu",
        *,
        warm_up: int = 100,
        min_growth: float = 64.0,
        on_leak: str = "warn",
        live: TextIO | None = None,
    ) -> None:
        if not warm_up >= 0:  # also for NaN
            raise ValueError(f"warm_up={warm_up}: must not be negative")
        if not min_growth >= 0:
            raise ValueError(f"min_growth={min_growth}: must not be negative")
        if on_leak not in ("warn", "raise"):
            raise ValueError(f"on_leak={on_leak!r}: choose 'warn' or 'raise'")
        if live is not None and not (hasattr(live, "write") and hasattr(live, "isatty")):
            raise TypeError(f"live must be a text file such as sys.stderr, not {type(live).__name__}")
        self._device = memory_meter(device).device
        self._warm_up, self._on_leak, self._live = warm_up, on_leak, live
        self._is_entered = False
        self._counter: AllocationCounter | None = None  # None while a MemoryProfiler counts
        self._earlier_bytes = 0  # live bytes when the context was last left
        self._judges_objects = self._device.type != "cpu" or _backend.load()  # otherwise the counter is a TensorCounter
        self._steps = 0
        self._min_growth = min_growth
        self._allocator, self._process = GrowthEstimator(min_growth), GrowthEstimator(min_growth)
        self._objects = GrowthEstimator(GROWING, samples_per_block=1)
        self._trace: ObjectTrace | None = None  # the current or the last trace
        self._next_trace = 0  # the first step at which another trace may begin
        self._has_warned = False
        self._last_line = float("-inf")

    def __enter__(self) -> Self:
        if self._is_entered:
            raise RuntimeError("this LeakDetector is already entered: use another one for another loop")
        if active_profiler() is None:
            counter = allocation_counter(self._device)
            counter.start()
            self._counter = counter
        self._is_entered = True
        return self

    def __exit__(self, *error: object) -> None:
        self._is_entered = False
        if self._counter is not None:
            self._earlier_bytes = self._live_bytes()
            self._counter.stop()
            self._counter = None
        if self._trace is not None and not self._trace.is_complete:
            self._trace.stop()
            self._trace = None
        if self._live is not None and self._live.isatty():
            self._live.write("\n")

    def step(self, n: int = 1) -> None:
        """Take a sample after a step of the loop, or after n steps.

        Raises:
            ValueError: n is below 1. RuntimeError: the context is not entered. MemoryLeakError: see `on_leak`.
        """
        if not n >= 1:
            raise ValueError(f"n={n}: must be at least 1")
        self._steps += n
        allocated, resident = self._live_bytes(), resident_bytes()
        if self._live is not None:
            self._write_line(self._live, allocated, resident)
        if self._steps <= self._warm_up:
            return
        self._allocator.add(self._steps, allocated)
        if self._trace is not None and not self._trace.is_complete:
            if self._trace.was_stopped:
                self._trace, self._next_trace = None, 2 * self._steps
            elif self._trace.step(self._steps):
                self._judge()
            return
        if self._process.add(self._steps, resident):
            self._objects.add(self._steps, sys.getallocatedblocks())
            if not self._has_warned and self._steps >= self._next_trace and self._is_suspicious():
                self._trace = ObjectTrace(self._steps)

    def report(self) -> LeakReport:
        """Return what was found so far."""
        growths = allocator, process, _ = self._growths()
        trace = self._trace if self._trace is not None and self._trace.is_complete else None
        python_bytes = 0.0 if trace is None else trace.bytes_per_step
        is_leaking = (
            _is_steady(allocator)
            or self._process_leaks(process)
            or (
                self._judges_objects
                and trace is not None
                and trace.objects_per_step > GROWING
                and python_bytes > self._min_growth
            )
        )
        found = ([], [], []) if trace is None or not is_leaking else (trace.types, trace.tensors, trace.sites)
        return LeakReport(self._steps, *growths, python_bytes, is_leaking, *found)

    def _growths(self) -> tuple[Growth | None, Growth | None, Growth | None]:
        return self._allocator.estimate(), self._process.estimate(), self._objects.estimate()

    def _is_suspicious(self) -> bool:
        allocator, process, objects = self._growths()
        return _is_steady(allocator) or _is_steady(objects) or self._process_leaks(process)

    def _process_leaks(self, growth: Growth | None) -> bool:
        return growth is not None and growth.is_steady and growth.low * (self._steps - self._warm_up) > _PROCESS_BYTES

    def _live_bytes(self) -> int:
        if self._counter is None:
            profiler = active_profiler()
            if profiler is None:
                raise RuntimeError("LeakDetector.step needs the context: with LeakDetector() as detector: ...")
            return profiler.live_bytes()
        allocated, freed, _, _ = self._counter.read()
        return self._earlier_bytes + allocated - freed

    def _judge(self) -> None:
        """Warn or raise if there is a leak, after a trace; else plan another trace."""
        report = self.report()
        if not report.is_leaking:
            self._next_trace = 2 * self._steps
            return
        self._has_warned = True
        if self._on_leak == "raise":
            raise MemoryLeakError(report)
        warnings.warn(report.describe(), MemoryLeakWarning, stacklevel=3)

    def _write_line(self, file: TextIO, allocated: int, resident: int) -> None:
        now, is_terminal = time.monotonic(), file.isatty()
        if not is_terminal and now - self._last_line < _SECONDS_BETWEEN_LINES:
            return
        self._last_line = now
        text = f"step {self._steps}: allocator {format_bytes(allocated)}, process {format_bytes(resident)}"
        for name, growth in (("allocator", self._allocator.estimate()), ("process", self._process.estimate())):
            if growth is not None:
                text += f", {name} {growth.per_step:+.0f} B/step"
        file.write(f"\r{text}\x1b[K" if is_terminal else f"{text}\n")
        file.flush()
