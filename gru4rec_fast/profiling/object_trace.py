"""Name the Python types, tensors and allocation sites whose objects become more with every step."""

from __future__ import annotations

import gc
import linecache
import os
import sys
import tracemalloc
from collections import Counter
from pathlib import Path

from torch import Tensor

GROWING = 0.5  # objects per step from which a type or a site is named

_N_FRAMES = 3
_TOP = 5  # how many types, shapes and sites are named
# The steps of the three looks, counted from the start. Objects that existed before the start are not traced, so those
# that the first steps replace would look like growth.
_LOOKS = (32, 80, 128)
# A site that grows less from the second look to the third than before is that of a cache or of replaced objects.
_LASTING = 0.9

_Sites = dict[tuple[str, int], tuple[int, int]]  # (bytes, objects) by (file, line)


class ObjectTrace:
    """Compares the Python objects at three steps of a loop, by gc and tracemalloc.

    Attributes:
        is_complete: whether the three looks were taken; only then are there the other attributes.
        bytes_per_step: growth of the memory of the Python objects of all lasting sites, without the elements of
            tensors. A site is lasting if its objects become more by a constant number per step.
        objects_per_step: growth of the number of blocks in the interpreter's memory from the second look on.
        types, tensors, sites: see `LeakReport`.
    """

    types: list[tuple[str, float]]
    tensors: list[tuple[str, float]]
    sites: list[tuple[str, str, float, float]]
    bytes_per_step: float
    objects_per_step: float

    def __init__(self, step: int) -> None:
        self.is_complete = False
        self._start = step
        self._steps, self._blocks, self._sites = list[int](), list[int](), list[_Sites]()  # of each look
        self._types, self._tensors = Counter[str](), Counter[str]()
        self._started_tracemalloc = not tracemalloc.is_tracing()
        if self._started_tracemalloc:
            tracemalloc.start(_N_FRAMES)

    @property
    def was_stopped(self) -> bool:
        """Whether other code has stopped tracemalloc before the trace was complete."""
        return not self.is_complete and not tracemalloc.is_tracing()

    def step(self, step: int) -> bool:
        """Take a look if one is due; return whether it was the last one."""
        if step < self._start + _LOOKS[len(self._steps)]:
            return False
        gc.collect()  # also clears the free lists, in which the interpreter keeps thousands of blocks
        self._blocks.append(sys.getallocatedblocks())
        is_first, is_last = not self._steps, len(self._steps) == len(_LOOKS) - 1
        # The objects of an earlier look must not count as growth: they exist before types are counted.
        types, tensors = _count_objects() if is_last else (Counter[str](), Counter[str]())
        self._sites.append(_traced_sites())
        self._steps.append(step)
        if is_first:
            self._types, self._tensors = _count_objects()
        if is_last:
            self.stop()
            n_steps = step - self._steps[0]
            self.objects_per_step = self._growth(self._blocks)[1]
            self.types, self.tensors = _grown(types, self._types, n_steps), _grown(tensors, self._tensors, n_steps)
            sites = self._lasting_sites()
            self.bytes_per_step = sum(size for _, _, size, _ in sites)
            self.sites = sites[:_TOP]
            self.is_complete = True
        return is_last

    def _growth(self, values: list[int]) -> list[float]:
        """Return the growth per step between the looks."""
        return [(values[i + 1] - values[i]) / (self._steps[i + 1] - self._steps[i]) for i in range(len(values) - 1)]

    def _lasting_sites(self) -> list[tuple[str, str, float, float]]:
        """Return the lasting sites in the form of `LeakReport.sites`, those with most objects per step first."""
        sites = []
        for file, line in self._sites[-1]:
            looks = [sites_of_look.get((file, line), (0, 0)) for sites_of_look in self._sites]
            first, second = self._growth([count for _, count in looks])
            if second >= GROWING and second >= _LASTING * first:
                size = self._growth([size for size, _ in looks])[1]
                sites.append((f"{file}:{line}", linecache.getline(file, line).strip(), size, second))
        return sorted(sites, key=lambda site: (-site[3], -site[2]))

    def stop(self) -> None:
        """Stop tracemalloc, if this object started it."""
        if self._started_tracemalloc:
            tracemalloc.stop()
        self._started_tracemalloc = False


def _count_objects() -> tuple[Counter[str], Counter[str]]:
    """Return the number of objects of each type, and of tensors of each shape, among those that gc tracks."""

    def describe(tensor: Tensor) -> str:
        # torch.compile keeps tensors with symbolic sizes. Printing these fills a cache, which looks like a leak.
        sizes = ", ".join(str(n) if isinstance(n, int) else "?" for n in tensor.shape)
        return f"{type(tensor).__name__} [{sizes}] {tensor.dtype} on {tensor.device}"

    objects = gc.get_objects()
    # type and not isinstance, which would call the property __class__ of proxy objects.
    by_type = Counter(map(type, objects))
    tensor_types = {kind for kind in by_type if issubclass(kind, Tensor)}
    tensors = Counter(describe(x) for x in objects if type(x) in tensor_types)
    types = Counter[str]()
    for kind, count in by_type.items():
        types[f"{kind.__module__}.{kind.__qualname__}"] += count
    return types, tensors


def _traced_sites() -> _Sites:
    """Return the traced memory by the line that allocated it, without that of the detector itself.

    What another file of this folder allocates is that of the line that called it: without native kernels, the counter
    of allocations runs within every operator.
    """
    folder = f"{Path(__file__).parent}{os.sep}"
    detector = {f"{folder}{name}.py" for name in ("leak_detector", "object_trace", "growth")}
    sites: _Sites = {}
    for trace in tracemalloc.take_snapshot().traces:
        frames = [frame for frame in reversed(trace.traceback) if not frame.filename.startswith(folder)]
        if frames and not any(frame.filename in detector for frame in trace.traceback):
            key = frames[0].filename, frames[0].lineno
            size, count = sites.get(key, (0, 0))
            sites[key] = size + trace.size, count + 1
    return sites


def _grown(now: Counter[str], then: Counter[str], n_steps: int) -> list[tuple[str, float]]:
    growth = [(name, (count - then[name]) / n_steps) for name, count in now.items()]
    return sorted((x for x in growth if x[1] >= GROWING), key=lambda x: -x[1])[:_TOP]
