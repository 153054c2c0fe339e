"""Whether the memory of this process keeps growing: a slope that one-off growth does not move."""

from __future__ import annotations

import ctypes
import gc
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import pytest

STATM = Path("/proc/self/statm")
needs_statm = pytest.mark.skipif(not STATM.exists(), reason="the resident size is read from /proc, which Linux has")
# A sanitizer's allocator keeps what was freed for a while, to find uses of it.
needs_plain_allocator = pytest.mark.skipif(
    bool(os.environ.get("GRU4REC_FAST_SANITIZE")), reason="a sanitizer's allocator holds on to freed memory"
)


@contextmanager
def quick_collections() -> Iterator[None]:
    """What Python holds already is not looked through again by each collection inside the block."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def resident_bytes() -> int:
    """The resident size, with what is free given back first: a leak must not hide in room that others left."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc
    if trim is not None:
        trim(0)
    return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def growth(samples: Sequence[int]) -> float:
    """By how much the samples grow from one to the next, once the first third has passed.

    The median over all pairs a quarter of the samples apart: one jump, wherever it is, touches a third of the pairs at
    most, and leaves the median alone; a leak is in every pair.
    """
    settled = samples[len(samples) // 3 :]
    apart = len(settled) // 4
    assert apart >= 2, f"{len(samples)} samples are too few to tell a leak from a jump"
    return median(later - earlier for earlier, later in zip(settled, settled[apart:], strict=False)) / apart
