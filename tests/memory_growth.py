"""Measure whether the memory of this process keeps growing. A single jump of its size does not count."""

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
needs_statm = pytest.mark.skipif(not STATM.exists(), reason="needs /proc/self/statm (Linux)")
# The allocator of a sanitizer keeps freed memory for a while, to detect use after free.
needs_plain_allocator = pytest.mark.skipif(
    bool(os.environ.get("GRU4REC_FAST_SANITIZE")), reason="the allocator of a sanitizer keeps freed memory"
)


@contextmanager
def quick_collections() -> Iterator[None]:
    """Make garbage collections within the block skip all objects that exist before it."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def resident_bytes() -> int:
    """Return the resident size after freed memory is returned to the system, so that it cannot hide a leak."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc
    if trim is not None:
        trim(0)
    return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def growth(samples: Sequence[int]) -> float:
    """Return the growth from one sample to the next. The first third of the samples is ignored.

    It is the median over all pairs of samples at a distance of a quarter of them. A single jump changes at most a third
    of these pairs and so not the median; a leak changes all pairs.
    """
    settled = samples[len(samples) // 3 :]
    distance = len(settled) // 4
    assert distance >= 2, f"{len(samples)} samples are too few to tell a leak from a jump"
    return median(later - earlier for earlier, later in zip(settled, settled[distance:], strict=False)) / distance
