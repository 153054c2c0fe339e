"""Memory hooks: what each phase of a loop, or each pass of a module, holds now and held at its peak, in bytes.

What is measured, on the CPU and on CUDA, is said in meter.py. Nothing here acts at import.
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

from gru4rec_fast.profiling.meter import memory_meter

MIB = 2**20


@dataclass
class PhaseMemory:
    """What one phase held: `current_bytes` at the end of its last call, `peak_bytes` over all its calls."""

    current_bytes: int = 0
    peak_bytes: int = 0
    calls: int = 0


class MemoryRecord:
    """Current and peak bytes per phase of any loop, or of any module.

        record = MemoryRecord("cpu")
        with record.phase("forward"):
            output = model(batch)
        record.attach(model, "model")   # or by hooks: phases "model.forward" and "model.backward"
        print(record.table())

    Phases may nest: what happens in an inner phase counts for the outer one too. Reading costs two small files of /proc
    a phase (some 50 us), on CUDA two calls into the allocator and no synchronization.
    """

    def __init__(self, device: torch.device | str = "cpu"):
        self._meter = memory_meter(device)
        self._phases: dict[str, PhaseMemory] = {}
        self._open: list[str] = []
        self._handles: dict[nn.Module, list[RemovableHandle]] = {}

    def _sample(self, *also: str) -> int:
        """Give the peak since the last sample to all open phases and to `also`; return the current bytes."""
        current, peak = self._meter.reset()
        for name in (*self._open, *also):
            phase = self._phases[name]
            phase.peak_bytes = max(phase.peak_bytes, peak)
        return current

    def _begin(self, name: str) -> None:
        self._sample()
        self._phases.setdefault(name, PhaseMemory())
        self._open.append(name)

    def _end(self, name: str) -> None:
        current = self._sample()
        while self._open and self._open.pop() != name:  # an exception may have left inner phases open
            pass
        phase = self._phases[name]
        phase.current_bytes = current
        phase.calls += 1

    @contextmanager
    def _bracket(self, name: str) -> Iterator[None]:
        self._begin(name)
        try:
            yield
        finally:
            self._end(name)

    def phase(self, name: str) -> AbstractContextManager[None]:
        """A context whose memory is recorded under `name`; entering it again adds to the same line."""
        return self._bracket(name)

    def attach(self, module: nn.Module, name: str = "") -> None:
        """Record a module's forward and backward passes by hooks, as phases `name.forward` and `name.backward`.

        The backward phase runs from the gradient of the module's output to the last gradient that reached one of its
        parameters.

        Raises:
            ValueError: the module is attached already.
        """
        if module in self._handles:
            raise ValueError(f"{type(module).__name__} is attached already; detach() it first")
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
            # Not a module's full backward hook: that one warns where the inputs are integers.
            outputs = [x for x in tree_leaves(output) if isinstance(x, Tensor) and x.requires_grad]
            if outputs:
                register_multi_grad_hook(outputs, before_backward, mode="any")

        self._handles[module] = [
            module.register_forward_pre_hook(before_forward),
            module.register_forward_hook(after_forward, always_call=True),
            *(p.register_post_accumulate_grad_hook(after_gradient) for p in module.parameters() if p.requires_grad),
        ]

    def detach(self, module: nn.Module | None = None) -> None:
        """Remove the hooks of one module, or of all."""
        for attached in list(self._handles) if module is None else [module]:
            for handle in self._handles.pop(attached, ()):
                handle.remove()

    def summary(self) -> dict[str, dict[str, int]]:
        """Per phase: `current_bytes`, `peak_bytes`, `calls`, in the order in which the phases were first met."""
        return {name: vars(phase).copy() for name, phase in self._phases.items()}

    def table(self) -> str:
        """The summary as text, in MiB."""
        width = max([len("phase"), *map(len, self._phases)])
        lines = [f"{'phase':<{width}} {'current MiB':>12} {'peak MiB':>12} {'calls':>8}"]
        for name, phase in self._phases.items():
            current, peak = phase.current_bytes / MIB, phase.peak_bytes / MIB
            lines.append(f"{name:<{width}} {current:>12.1f} {peak:>12.1f} {phase.calls:>8}")
        return "\n".join(lines)


class NullMemoryRecord(MemoryRecord):
    """The record that is switched off: same methods, no work."""

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
