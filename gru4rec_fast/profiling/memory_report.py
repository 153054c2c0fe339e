"""The report of a MemoryProfiler: as a table, JSON, CSV, TensorBoard scalars and a picture."""

from __future__ import annotations

import csv
import io
import json
import os
from dataclasses import asdict, dataclass, field
from typing import Any

from gru4rec_fast._untrusted import whole_numbers
from gru4rec_fast.profiling.timeline import TimelineSample, plot_timeline

MIB = 2**20
_TABLE_HEADER = ("phase", "calls", "ms/call", "allocated", "freed", "kept", "peak", "allocations")


@dataclass
class PhaseMemory:
    """Memory of all calls of a phase. Phases within it are included.

    Attributes:
        path: names from the outermost phase to this one; () is the whole time in the profiler's context.
        calls: how often the phase ran.
        seconds: total time, with the time of the profiler.
        allocated_bytes, freed_bytes, allocations: what was allocated and freed in this phase, and in how many
            allocations. Memory of earlier phases may be freed in this phase. On the CPU, memory that was allocated
            while no profiler recorded is not counted when it is freed.
        peak_bytes: largest number of bytes that were allocated and not freed since the profiler was started, while the
            phase ran.
    """

    path: tuple[str, ...]
    calls: int
    seconds: float
    allocated_bytes: int
    freed_bytes: int
    allocations: int
    peak_bytes: int

    @property
    def kept_bytes(self) -> int:
        """Bytes that all calls together added to the live memory: allocated - freed; negative if they freed more."""
        return self.allocated_bytes - self.freed_bytes


@dataclass(frozen=True)
class MemoryReport:
    """What a MemoryProfiler recorded.

    Attributes:
        device: the device of the counts.
        phases: each phase after the phase that contains it; the first is the whole time.
        tensors: bytes of the modules that were attached or tracked: parameters, buffers, gradients (the largest of each
            parameter), optimizer_state, activations (saved for backward by one forward pass of an attached module).
        copies: `copies` and `bytes` by direction, such as "cpu to cuda"; None if they were not counted.
        resident_bytes: resident size of the process now.
        peak_resident_bytes: peak resident size above the size when the profiler was first entered.
        timeline: a sample for each begin and end of a phase, the last 100,000.
        dropped_samples: number of earlier samples that the timeline does not have any more.
    """

    device: str
    phases: list[PhaseMemory]
    tensors: dict[str, int]
    copies: dict[str, dict[str, int]] | None
    resident_bytes: int
    peak_resident_bytes: int
    timeline: list[TimelineSample] = field(repr=False)
    dropped_samples: int = 0

    def phase(self, *path: str) -> PhaseMemory:
        """Return the phase with this path, outermost name first. Raises KeyError if it was not recorded."""
        for phase in self.phases:
            if phase.path == path:
                return phase
        raise KeyError(f"there is no phase {'/'.join(path)}; recorded: {['/'.join(p.path) for p in self.phases[1:]]}")

    def table(self) -> str:
        """Return the report as text. Bytes are totals of all calls, except for the peak."""
        rows = [_TABLE_HEADER, *(_table_row(phase) for phase in self.phases)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [f"memory of {self.device}"]
        for first, *others in rows:
            cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
            lines.append("  ".join([first.ljust(widths[0]), *cells]).rstrip())
        held = [f"{name.replace('_', ' ')} {format_bytes(n)}" for name, n in self.tensors.items() if n]
        if held:
            lines.append("tensors: " + ", ".join(held))
        for direction, count in (self.copies or {}).items():
            lines.append(f"copies from {direction}: {count['copies']}, {format_bytes(count['bytes'])}")
        resident, peak = format_bytes(self.resident_bytes), format_bytes(self.peak_resident_bytes)
        lines.append(f"process: {resident} resident; peak {peak} above the start")
        return "\n".join(lines)

    def to_json(self) -> str:
        """Return everything as a JSON object. A phase has its path, the fields of `PhaseMemory` and kept_bytes."""
        values: dict[str, Any] = asdict(self)
        values["phases"] = [asdict(phase) | {"kept_bytes": phase.kept_bytes} for phase in self.phases]
        values["timeline"] = [sample._asdict() for sample in self.timeline]
        return json.dumps(values)

    def to_csv(self) -> str:
        """Return one line for each phase, with a header; the path has slashes between names."""
        text = io.StringIO()
        fields = ("calls", "seconds", "allocated_bytes", "freed_bytes", "kept_bytes", "allocations", "peak_bytes")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(("phase", *fields))
        for phase in self.phases:
            writer.writerow(("/".join(phase.path), *(getattr(phase, name) for name in fields)))
        return text.getvalue()

    def write_scalars(self, writer: Any, step: int, prefix: str = "memory") -> None:
        """Write the peak and the kept bytes of each phase, the tensors and the resident size as TensorBoard scalars.

        Args:
            writer: a `torch.utils.tensorboard.SummaryWriter`, or any object with `add_scalar(name, value, step)`.
            step: the step of the scalars.
            prefix: first part of their names, such as "memory/forward/peak_bytes".
        """
        for phase in self.phases:
            name = "/".join((prefix, *(phase.path or ("total",))))
            writer.add_scalar(f"{name}/peak_bytes", phase.peak_bytes, step)
            writer.add_scalar(f"{name}/kept_bytes", phase.kept_bytes, step)
        for name, n_bytes in self.tensors.items():
            writer.add_scalar(f"{prefix}/tensors/{name}", n_bytes, step)
        writer.add_scalar(f"{prefix}/resident_bytes", self.resident_bytes, step)

    def plot(self, path: str | os.PathLike[str], *, last: int = 2000) -> None:
        """Draw live bytes and resident bytes over time, with the outermost phases shaded.

        Args:
            path: the picture, in the format of its suffix, e.g. .png or .svg.
            last: how many samples are drawn, from the end of the timeline; at least 1.

        Raises:
            ImportError: matplotlib is not installed. OSError: the file cannot be written.
            ValueError, TypeError: nothing was recorded, the suffix of `path` is missing or no format of pictures, or
                `last` is not a positive integer.
        """
        (last,) = whole_numbers(1, last=last)
        plot_timeline(self.timeline[-last:], path)


def _table_row(phase: PhaseMemory) -> tuple[str, ...]:
    name = "  " * (len(phase.path) - 1) + phase.path[-1] if phase.path else "total"
    n_bytes = (phase.allocated_bytes, phase.freed_bytes, phase.kept_bytes, phase.peak_bytes)
    milliseconds = 1000 * phase.seconds / max(phase.calls, 1)
    return (name, str(phase.calls), f"{milliseconds:.3f}", *map(format_bytes, n_bytes), str(phase.allocations))


def format_bytes(n: float) -> str:
    """Return bytes in the unit that keeps one to four digits before the point, e.g. 1.5 MiB."""
    for unit, size in (("GiB", 2**30), ("MiB", MIB), ("KiB", 2**10)):
        if abs(n) >= size:
            return f"{n / size:.1f} {unit}"
    return f"{n:.0f} B"
