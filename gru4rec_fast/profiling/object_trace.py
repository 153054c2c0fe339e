"""Name the Python types, tensors and allocation sites whose objects become more with every step."""

from __future__ import annotations

import gc
import linecache
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
_LOOKS = (16, 64, 112)
# A growth that falls from the first half to the second is that of a cache or of replaced objects.
_LASTING = 0.8

_Sites = dict[tuple[str, int], tuple[int, int]]  # (bytes, objects) by (file, line)


class ObjectTrace:
    """Compares the Python objects at three steps of a loop, by gc and tracemalloc.

    Attributes:
        is_complete: whether the three looks were taken; only then are there the other attributes.
        bytes_per_step: growth of the memory of Python objects in the second half of the steps, without the elements of
            tensors; 0.0 if it is less than 80 % of the growth of the first half.
        objects_per_step: growth of the number of blocks in the interpreter's memory in the second half of the steps.
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
        self._steps, self._bytes, self._blocks = list[int](), list[int](), list[int]()  # of each look
        self._sites: _Sites = {}
        self._types, self._tensors = Counter[str](), Counter[str]()
        self._started_tracemalloc = not tracemalloc.is_tracing()
        if self._started_tracemalloc:
            tracemalloc.start(_N_FRAMES)

    def step(self, step: int) -> bool:
        """Take a look if one is due; return whether it was the last one."""
        if step < self._start + _LOOKS[len(self._steps)]:
            return False
        gc.collect()  # also clears the free lists, in which the interpreter keeps thousands of blocks
        self._blocks.append(sys.getallocatedblocks())
        is_first, is_last = not self._steps, len(self._steps) == len(_LOOKS) - 1
        # The objects of an earlier look must not count as growth: they exist before types are counted.
        types, tensors = _count_objects() if is_last else (Counter[str](), Counter[str]())
        sites = _traced_sites()
        self._steps.append(step)
        self._bytes.append(sum(size for size, _ in sites.values()))
        if is_first:
            self._sites = sites
            self._types, self._tensors = _count_objects()
        if is_last:
            self.stop()
            n_steps = step - self._steps[0]
            first, second = self._growth(self._bytes)
            self.bytes_per_step = second if second > _LASTING * first else 0.0
            self.objects_per_step = self._growth(self._blocks)[1]
            self.types, self.tensors = _grown(types, self._types, n_steps), _grown(tensors, self._tensors, n_steps)
            self.sites = _grown_sites(sites, self._sites, n_steps)
            self.is_complete = True
        return is_last

    def _growth(self, values: list[int]) -> list[float]:
        """Return the growth per step between the looks."""
        return [(values[i + 1] - values[i]) / (self._steps[i + 1] - self._steps[i]) for i in range(len(values) - 1)]

    def stop(self) -> None:
        """Stop tracemalloc, if this object started it."""
        if self._started_tracemalloc:
            tracemalloc.stop()
        self._started_tracemalloc = False


def _count_objects() -> tuple[Counter[str], Counter[str]]:
    """Return the number of objects of each type, and of tensors of each shape, among those that gc tracks."""
    objects = gc.get_objects()
    types = Counter(f"{type(x).__module__}.{type(x).__qualname__}" for x in objects)
    # isinstance would call the property __class__ of proxy objects.
    tensors = Counter(
        f"{type(x).__name__} {[*x.shape]} {x.dtype} on {x.device}" for x in objects if issubclass(type(x), Tensor)
    )
    return types, tensors


def _traced_sites() -> _Sites:
    """Return the traced memory by the line that allocated it, without that of this folder."""
    snapshot = tracemalloc.take_snapshot()
    snapshot = snapshot.filter_traces([tracemalloc.Filter(False, f"{Path(__file__).parent}/*", all_frames=True)])
    sites = {}
    for statistic in snapshot.statistics("lineno"):
        frame = statistic.traceback[-1]
        sites[frame.filename, frame.lineno] = statistic.size, statistic.count
    return sites


def _grown(now: Counter[str], then: Counter[str], n_steps: int) -> list[tuple[str, float]]:
    growth = [(name, (count - then[name]) / n_steps) for name, count in now.items()]
    return sorted((x for x in growth if x[1] >= GROWING), key=lambda x: -x[1])[:_TOP]


def _grown_sites(now: _Sites, then: _Sites, n_steps: int) -> list[tuple[str, str, float, float]]:
    sites = []
    for (file, line), (size, count) in now.items():
        earlier_size, earlier_count = then.get((file, line), (0, 0))
        per_step = (count - earlier_count) / n_steps
        if per_step >= GROWING:
            sites.append(
                (f"{file}:{line}", linecache.getline(file, line).strip(), (size - earlier_size) / n_steps, per_step)
            )
    return sorted(sites, key=lambda site: (-site[3], -site[2]))[:_TOP]
