"""Record the memory that each phase of a training, and each module, allocates, frees and needs at its peak."""

from __future__ import annotations

import os
import pickle
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import torch
from torch import nn

from gru4rec_fast._atomic_writes import replace_file
from gru4rec_fast.profiling.allocation_counters import (
    AllocationCounter,
    CopyCounter,
    NativeCounter,
    allocation_counter,
)
from gru4rec_fast.profiling.device_memory import PeakMemory, memory_meter, resident_bytes
from gru4rec_fast.profiling.memory_report import MemoryReport, PhaseMemory
from gru4rec_fast.profiling.module_hooks import ModuleHooks
from gru4rec_fast.profiling.tensor_bytes import TensorBytes
from gru4rec_fast.profiling.timeline import TimelineSample

_SECONDS_PER_RESIDENT_SAMPLE = 0.01  # reading the resident size takes about 20 us
_TIMELINE_SAMPLES = 100_000

_Counts = tuple[int, int, int, int]  # see `AllocationCounts`


class _Phase:
    """A phase in the tree of phases. The path of the root is empty."""

    def __init__(self, path: tuple[str, ...] = ()) -> None:
        self.memory = PhaseMemory(path, 0, 0.0, allocated_bytes=0, freed_bytes=0, allocations=0, peak_bytes=0)
        self.children: dict[str, _Phase] = {}


@dataclass
class _OpenPhase:
    """A phase that has begun and not ended: the counts at its begin, and its peak so far."""

    phase: _Phase
    started: float
    allocated_bytes: int
    freed_bytes: int
    allocations: int
    peak_bytes: int


class MemoryProfiler:
    """Records memory for each phase of a loop and for each module, and which tensors hold it.

        with MemoryProfiler() as profiler:
            model.fit("train.tsv")  # every training of this package reports its phases
        print(profiler.report().table())

        profiler = MemoryProfiler()
        profiler.attach(network, optimizer=optimizer)  # hooks: forward and backward of each module
        with profiler:
            for batch in loader:
                with profiler.phase("forward"):
                    ...

    On the CPU the counts are those of torch's allocator, in the thread that entered the context: they are exact, but
    memory that worker threads allocate is not counted. On CUDA they are those of torch's caching allocator.
    The resident size of the process is sampled in addition. Entering the context again adds to the same
    report. Phases may be nested. A phase costs 10 to 20 us on the CPU. Without a profiler nothing is measured.

    Args:
        device: the device whose memory is recorded.
        count_copies: count the bytes that are copied between host and device. To count, a Python function is called for
            each operator of torch. None: only if `device` is not the CPU.
        record_history: GPU only; record each allocation with its stack, for `save_snapshot`. It takes time.

    Raises:
        RuntimeError: there is no such device; the context is entered while another profiler records in this thread, or
            left in another thread.
        ValueError: the device is neither the CPU nor a CUDA device; record_history on the CPU.
    """

    def __init__(
        self, device: torch.device | str = "cpu", *, count_copies: bool | None = None, record_history: bool = False
    ) -> None:
        self.device = memory_meter(device).device
        if record_history and self.device.type != "cuda":
            raise ValueError(f"record_history=True is for GPUs, not for {self.device}; use plot() and to_json()")
        self._records_history = record_history
        self._snapshot: object = None  # torch's snapshot at the end of the context
        self._counter: AllocationCounter = allocation_counter(self.device)
        self._copies = CopyCounter()
        self._counts_copies = self.device.type != "cpu" if count_copies is None else count_copies
        self._tensors = TensorBytes()
        self._hooks = ModuleHooks(self._tensors, self._is_recording, self.begin_phase, self.end_phase)
        self._root = _Phase()
        self._open: list[_OpenPhase] = []
        self._timeline: deque[TimelineSample] = deque(maxlen=_TIMELINE_SAMPLES)
        self._n_samples = 0
        self._resident_peak: PeakMemory | None = None
        self._resident_sample = (0, float("-inf"))  # resident bytes and the time when they were read
        self._entered: ExitStack | None = None

    def __enter__(self) -> Self:
        if active_profiler() is not None:
            raise RuntimeError("a MemoryProfiler records in this thread already; leave its context first")
        with ExitStack() as stack:
            self._resident_peak = self._resident_peak or PeakMemory()
            if self._counts_copies:
                stack.enter_context(self._copies)
            self._counter.start()
            stack.callback(self._counter.stop)
            if self._records_history:
                torch.cuda.memory._record_memory_history(max_entries=_TIMELINE_SAMPLES)
                stack.callback(self._end_history)
            _active.profiler = self
            stack.callback(setattr, _active, "profiler", None)
            self._begin(self._root, *self._read())
            stack.callback(lambda: self._end(self._root, *self._read()))
            self._entered = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        if self._entered is None:
            return
        if active_profiler() is not self:
            raise RuntimeError("leave the context of a MemoryProfiler in the thread that entered it")
        self._hooks.end_forward()
        stack, self._entered = self._entered, None
        stack.close()

    def _is_recording(self) -> bool:
        # On a GPU, autograd runs backward in a thread of its own, where no profiler is active.
        return self._entered is not None and (self.device.type != "cpu" or active_profiler() is self)

    def _end_history(self) -> None:
        self._snapshot = torch.cuda.memory._snapshot(self.device)
        torch.cuda.memory._record_memory_history(enabled=None)

    def save_snapshot(self, path: str | os.PathLike[str]) -> None:
        """Write torch's snapshot of the GPU memory at the end of the context: a file for torch's memory viewer.

        The viewer (docs.pytorch.org/memory_viz) shows every allocation with its stack.

        Raises:
            RuntimeError: the profiler was not made with record_history=True, or its context has not ended.
            OSError: the file cannot be written.
        """
        if self._snapshot is None:
            raise RuntimeError("no snapshot: make MemoryProfiler(device, record_history=True), and leave its context")
        with replace_file(Path(path)) as temporary:
            temporary.write_bytes(pickle.dumps(self._snapshot))

    def phase(self, name: str) -> AbstractContextManager[None]:
        """Return a context manager that records a phase; it records nothing outside the profiler's context."""
        return _PhaseContext(self, name) if self._entered is not None else _NOTHING

    def begin_phase(self, name: str) -> _Phase | None:
        """Begin a phase within the innermost phase that is open; return what `end_phase` takes."""
        if not self._open:
            return None
        self._hooks.end_failed_backward()
        phase = self._child(name)
        self._begin(phase, *self._read())
        return phase

    def end_phase(self, phase: _Phase | None) -> None:
        """End a phase, and phases within it that were not ended. A phase that is not open is ignored."""
        for opened in reversed(self._open):
            if opened.phase is phase:
                self._end(opened.phase, *self._read())
                return

    @contextmanager
    def native_phases(self) -> Iterator[NativeCounter | None]:
        """Yield the counter in which native code records its phases, one after another; they are read on exit.

        None if the profiler does not count with the native counter of the CPU.
        """
        if not isinstance(self._counter, NativeCounter):
            yield None
            return
        current: _Phase | None = None
        try:
            yield self._counter
        finally:
            for name, seconds, counts in self._counter.take_phases():
                if current is not None:
                    self._end(current, seconds, counts)
                current = self._child(name)
                self._begin(current, seconds, counts)
            if current is not None:
                self._end(current, *self._read())

    def track(self, module: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Report the bytes of a module's parameters, buffers and gradients and of the optimizer's state.

        No hooks are installed, so the fused step can still train the module. The report then has no gradients, because
        the fused step does not store them in the parameters.

        Raises:
            TypeError: `module` is not an nn.Module, or `optimizer` not an optimizer.
        """
        self._tensors.track(module, optimizer)

    def note_gradients(self) -> None:
        """Take into account the current gradients of the modules of `track`, for a loop that frees them later."""
        self._tensors.note_gradients()

    def attach(
        self,
        module: nn.Module,
        name: str = "",
        *,
        recurse: bool = True,
        optimizer: torch.optim.Optimizer | None = None,
    ) -> None:
        """Record forward and backward of a module by hooks, as phases `<name>.forward` and `<name>.backward`.

        The tensors that autograd saves for the backward pass are counted as activations. The backward of a module
        begins when the gradient of its output is there, and ends when that of another module begins. A module that
        returns the output of a submodule, such as nn.Sequential, has no backward of its own. With hooks, the fused step
        cannot train a network. A copy of the module, also a pickled one, is not recorded.

        Args:
            module: any module.
            name: name in the report; "" is the name of its class.
            recurse: also record each submodule, under its name in the module.
            optimizer: see `track`.

        Raises:
            TypeError: see `track`. ValueError: the module is already attached.
        """
        self.track(module, optimizer)
        self._hooks.add(module, name or type(module).__name__, recurse)

    def detach(self, module: nn.Module | None = None) -> None:
        """Remove the hooks of a module; None: of all modules. What was recorded stays in the report.

        Raises:
            RuntimeError: a forward pass of the module is running.
        """
        self._hooks.remove(module)

    def live_bytes(self) -> int:
        """Return the bytes that were allocated and not freed since the profiler was started."""
        allocated, freed, _, peak = self._counter.read()
        if self._open:
            self._open[-1].peak_bytes = max(self._open[-1].peak_bytes, peak)
        return allocated - freed

    def report(self) -> MemoryReport:
        """Return what was recorded so far. Of a phase that is still open, only earlier calls count."""
        return MemoryReport(
            device=str(self.device),
            phases=[replace(phase.memory) for phase in _walk(self._root)],
            tensors=self._tensors.summary(),
            copies=self._copies.summary() if self._counts_copies else None,
            resident_bytes=resident_bytes(),
            peak_resident_bytes=0 if self._resident_peak is None else self._resident_peak.bytes,
            timeline=list(self._timeline),
            dropped_samples=self._n_samples - len(self._timeline),
        )

    def _child(self, name: str) -> _Phase:
        """Return the phase of this name within the innermost open phase."""
        parent = self._open[-1].phase
        phase = parent.children.get(name)
        if phase is None:
            phase = parent.children[name] = _Phase((*parent.memory.path, name))
        return phase

    def _read(self) -> tuple[float, _Counts]:
        """Return the time and the counts of now; sample the resident size if the last sample is old."""
        counts, now = self._counter.read(), time.perf_counter()
        if now - self._resident_sample[1] > _SECONDS_PER_RESIDENT_SAMPLE:
            self._resident_sample = resident_bytes(), now
        return now, counts

    def _begin(self, phase: _Phase, seconds: float, counts: _Counts) -> None:
        allocated, freed, allocations, peak = counts
        if self._open:
            self._open[-1].peak_bytes = max(self._open[-1].peak_bytes, peak)
        self._open.append(_OpenPhase(phase, seconds, allocated, freed, allocations, allocated - freed))
        self._sample(phase, seconds, False, allocated - freed, peak)

    def _end(self, phase: _Phase, seconds: float, counts: _Counts) -> None:
        allocated, freed, allocations, peak = counts
        self._sample(phase, seconds, True, allocated - freed, peak)
        while self._open:  # inner phases are still open after an exception
            opened = self._open.pop()
            peak, ended = max(peak, opened.peak_bytes), opened.phase.memory
            ended.calls += 1
            ended.seconds += seconds - opened.started
            ended.allocated_bytes += allocated - opened.allocated_bytes
            ended.freed_bytes += freed - opened.freed_bytes
            ended.allocations += allocations - opened.allocations
            ended.peak_bytes = max(ended.peak_bytes, peak)
            if self._open:
                self._open[-1].peak_bytes = max(self._open[-1].peak_bytes, peak)
            if opened.phase is phase:
                break

    def _sample(self, phase: _Phase, seconds: float, is_end: bool, live_bytes: int, peak_bytes: int) -> None:
        resident = self._resident_sample[0]
        self._timeline.append(TimelineSample(seconds, phase.memory.path, is_end, live_bytes, peak_bytes, resident))
        self._n_samples += 1


def _walk(phase: _Phase) -> Iterator[_Phase]:
    yield phase
    for child in phase.children.values():
        yield from _walk(child)


class _PhaseContext:
    """The context of a phase; a class, because a generator would take twice as long."""

    def __init__(self, profiler: MemoryProfiler, name: str) -> None:
        self._profiler, self._name = profiler, name

    def __enter__(self) -> None:
        self._phase = self._profiler.begin_phase(self._name)

    def __exit__(self, *error: object) -> None:
        self._profiler.end_phase(self._phase)


_active = threading.local()
_NOTHING = nullcontext()


def active_profiler() -> MemoryProfiler | None:
    """Return the profiler whose context this thread is in, or None."""
    return getattr(_active, "profiler", None)


def phase(name: str) -> AbstractContextManager[None]:
    """Return a context manager that records a phase in the active profiler; it does nothing if there is none."""
    profiler = active_profiler()
    return _NOTHING if profiler is None else profiler.phase(name)


def native_phases() -> AbstractContextManager[NativeCounter | None]:
    """Return `MemoryProfiler.native_phases` of the active profiler, or a context of None if there is no profiler."""
    profiler = active_profiler()
    return _NOTHING if profiler is None else profiler.native_phases()
