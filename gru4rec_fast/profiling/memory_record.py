"""Records current and peak bytes of memory for each phase of a loop, or for the passes of a module.

device_memory.py defines what is measured on the CPU and on CUDA. Importing this file measures nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd.graph import register_multi_grad_hook
from torch.utils._pytree import tree_leaves
from torch.utils.hooks import RemovableHandle

from gru4rec_fast.profiling.device_memory import memory_meter

MIB = 2**20


@dataclass
class PhaseMemory:
    """Memory of one phase, and the number of its runs.

    Attributes:
        current_bytes: memory at the end of the last run.
        peak_bytes: peak of all runs.
        calls: number of runs.
    """

    current_bytes: int = 0
    peak_bytes: int = 0
    calls: int = 0


class MemoryRecord:
    """Records current and peak bytes of memory for each phase of a loop, or for the passes of a module.

        record = MemoryRecord("cpu")
        with record.phase("forward"):
            output = model(batch)
        record.attach(model, "model")  # records all later passes as phases "model.forward" and "model.backward"
        print(record.table())

    Phases may be nested; the peak of an inner phase also counts for the outer phase. On the CPU a phase reads a small
    file in /proc twice (about 50 us). On CUDA a phase calls the allocator twice and does not synchronize.

    Args:
        device: the device whose memory is recorded.
    """

    def __init__(self, device: torch.device | str = "cpu"):
        self._meter = memory_meter(device)
        self._phases: dict[str, PhaseMemory] = {}
        self._open: list[str] = []
        self._handles: dict[nn.Module, list[RemovableHandle]] = {}

    def _sample(self, *more_phases: str) -> int:
        """Add the peak since the previous sample to all open phases and to `more_phases`; return the current bytes."""
        current, peak = self._meter.reset()
        for name in (*self._open, *more_phases):
            phase = self._phases[name]
            phase.peak_bytes = max(phase.peak_bytes, peak)
        return current

    def _begin(self, name: str) -> None:
        self._sample()
        self._phases.setdefault(name, PhaseMemory())
        self._open.append(name)

    def _end(self, name: str) -> None:
        current = self._sample()
        while self._open and self._open.pop() != name:  # an exception may leave inner phases open
            pass
        phase = self._phases[name]
        phase.current_bytes = current
        phase.calls += 1

    @contextmanager
    def _record_phase(self, name: str) -> Iterator[None]:
        self._begin(name)
        try:
            yield
        finally:
            self._end(name)

    def phase(self, name: str) -> AbstractContextManager[None]:
        """Return a context manager that records the memory of a phase; a phase may run several times."""
        return self._record_phase(name)

    def attach(self, module: nn.Module, name: str = "") -> None:
        """Record the forward and backward passes of a module by hooks, as phases `name.forward` and `name.backward`.

        The backward phase starts when autograd has computed the gradient of the module's output, and ends when autograd
        has computed the gradients of all parameters.

        Raises:
            ValueError: the module is already attached.
        """
        if module in self._handles:
            raise ValueError(f"{type(module).__name__} is already attached; call detach() first")
        stem = name or type(module).__name__
        forward, backward = f"{stem}.forward", f"{stem}.backward"

        def before_backward(_grad: Tensor) -> None:
            self._sample()
            self._phases.setdefault(backward, PhaseMemory()).calls += 1

        def after_gradient(_parameter: Tensor) -> None:
            if backward in self._phases:
                self._phases[backward].current_bytes = self._sample(backward)

        def before_forward(_module: nn.Module, _args: object) -> None:
            self._begin(forward)

        def after_forward(_module: nn.Module, _args: object, output: object) -> None:
            if forward in self._open:
                self._end(forward)
            # register_full_backward_hook would warn if the inputs are integers.
            outputs = [x for x in tree_leaves(output) if isinstance(x, Tensor) and x.requires_grad]
            if outputs:
                register_multi_grad_hook(outputs, before_backward, mode="any")

        self._handles[module] = [
            module.register_forward_pre_hook(before_forward),
            module.register_forward_hook(after_forward, always_call=True),
            *(p.register_post_accumulate_grad_hook(after_gradient) for p in module.parameters() if p.requires_grad),
        ]

    def detach(self, module: nn.Module | None = None) -> None:
        """Remove the hooks of a module; None: of all modules."""
        for attached in list(self._handles) if module is None else [module]:
            for handle in self._handles.pop(attached, ()):
                handle.remove()

    def summary(self) -> dict[str, dict[str, int]]:
        """Return `current_bytes`, `peak_bytes` and `calls` of each phase, in the order of their first calls."""
        return {name: vars(phase).copy() for name, phase in self._phases.items()}

    def table(self) -> str:
        """Return the summary as a text table, in MiB."""
        width = max([len("phase"), *map(len, self._phases)])
        lines = [f"{'phase':<{width}} {'current MiB':>12} {'peak MiB':>12} {'calls':>8}"]
        for name, phase in self._phases.items():
            current, peak = phase.current_bytes / MIB, phase.peak_bytes / MIB
            lines.append(f"{name:<{width}} {current:>12.1f} {peak:>12.1f} {phase.calls:>8}")
        return "\n".join(lines)


class NullMemoryRecord(MemoryRecord):
    """A MemoryRecord that records nothing, for code in which recording is optional."""

    _nothing = nullcontext()

    def __init__(self) -> None:
        self._phases = {}
        self._handles = {}

    def phase(self, name: str) -> AbstractContextManager[None]:
        """Return a context that does nothing."""
        return self._nothing

    def attach(self, module: nn.Module, name: str = "") -> None:
        """Do nothing."""


NULL_RECORD = NullMemoryRecord()
