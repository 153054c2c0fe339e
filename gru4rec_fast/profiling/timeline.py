"""The memory over time that a MemoryProfiler recorded, and its picture."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from gru4rec_fast._atomic_writes import replace_file

_COLORS = ("#0b6e99", "#d1603d", "#4c8b4a", "#8a5fa8", "#b08900", "#3a6ea5", "#777777")
_LIVE, _RESIDENT = "#1f2933", "#6b7785"


class TimelineSample(NamedTuple):
    """Memory when a phase begins or ends.

    seconds: time of `time.perf_counter`. path: the phase that began or ended. is_end: whether it ended. live_bytes:
    allocated and not freed since the profiler was started. peak_bytes: peak since the previous sample. resident_bytes:
    of the process, up to 10 ms old; in the phases of the fused step, as old as its last call.
    """

    seconds: float
    path: tuple[str, ...]
    is_end: bool
    live_bytes: int
    peak_bytes: int
    resident_bytes: int


def plot_timeline(samples: Sequence[TimelineSample], path: str | os.PathLike[str]) -> None:
    """Draw live bytes (with their peaks) and resident bytes over time; see `MemoryReport.plot`."""
    if not samples:
        raise ValueError("there is nothing to draw: no phase was recorded; enter the profiler's context first")
    try:
        from matplotlib.figure import Figure
        from matplotlib.patches import Patch
    except ImportError as error:
        raise ImportError("the picture needs matplotlib: pip install matplotlib") from error

    if not Path(path).suffix:  # matplotlib would write another file, with a suffix
        raise ValueError(f"path={os.fspath(path)!r}: give a file name with a suffix, such as memory.png")
    start = samples[0].seconds
    times = [1000 * (sample.seconds - start) for sample in samples]
    figure = Figure(figsize=(10, 5), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    colors: dict[str, str] = {}
    for name, begin, end in _outermost_phases(samples):
        color = colors.setdefault(name, _COLORS[len(colors) % len(_COLORS)])
        for axes in (upper, lower):
            axes.axvspan(times[begin], times[end], color=color, alpha=0.22, linewidth=0)
    # A sample holds the peak since the previous sample, which lies between the two.
    curve = [(times[0], samples[0].live_bytes)]
    for i in range(1, len(samples)):
        curve += [((times[i - 1] + times[i]) / 2, samples[i].peak_bytes), (times[i], samples[i].live_bytes)]
    upper.plot([time for time, _ in curve], [n / 2**20 for _, n in curve], color=_LIVE, linewidth=1)
    lower.plot(times, [sample.resident_bytes / 2**20 for sample in samples], color=_RESIDENT, linewidth=1)
    upper.set_ylabel("allocated since\nthe start, MiB")
    lower.set_ylabel("process, MiB")
    lower.set_xlabel("milliseconds")
    low, high = lower.get_ylim()
    lower.set_ylim(low - 1, high + 1)  # small changes of the process are noise
    for axes in (upper, lower):
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(x=0)
    if colors:
        handles = [Patch(color=color, alpha=0.4, label=name) for name, color in colors.items()]
        figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), frameon=False)
    with replace_file(Path(path)) as temporary:
        figure.savefig(temporary, dpi=120)


def _outermost_phases(samples: Sequence[TimelineSample]) -> Iterator[tuple[str, int, int]]:
    """Yield the name and the indices of the first and last sample of each run of an outermost phase."""
    first = 0
    for i in range(1, len(samples) + 1):
        name = samples[first].path[:1]
        if i < len(samples) and samples[i].path[:1] == name and not _restarts(samples[i - 1], samples[i]):
            continue
        if name:
            yield name[0], first, i - 1
        first = i


def _restarts(previous: TimelineSample, sample: TimelineSample) -> bool:
    """Return whether a phase ended at `previous` and began again at `sample`."""
    return previous.is_end and len(previous.path) == 1 and not sample.is_end
