"""Measure whether the memory of this process keeps growing. A single increase does not count."""

from __future__ import annotations

import ctypes
import gc
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import pytest

STATM = Path("/proc/self/statm")  # sizes of this process in pages; the second number is the resident size
needs_statm = pytest.mark.skipif(not STATM.exists(), reason="needs /proc/self/statm (Linux)")
# The allocator of a sanitizer keeps freed memory for a while, to detect use after free.
needs_plain_allocator = pytest.mark.skipif(
    bool(os.environ.get("GRU4REC_FAST_SANITIZE")), reason="the allocator of a sanitizer keeps freed memory"
)


@contextmanager
def quick_garbage_collections() -> Iterator[None]:
    """Make garbage collections faster: within this context they skip all objects that existed before it."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def resident_bytes() -> int:
    """Return the resident size of this process.

    Freed memory is returned to the system first, because it could otherwise be reused and hide a leak.
    """
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # a function of glibc; other C libraries lack it
    if trim is not None:
        trim(0)
    return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def growth(samples: Sequence[int]) -> float:
    """Return the typical growth from one sample to the next. The first third of the samples is ignored.

    With n remaining samples, this is the median of the differences between samples i and i + n / 4, divided by n / 4. A
    single increase changes at most a third of these differences, and so not the median; a leak changes all of them.
    """
    samples = samples[len(samples) // 3 :]
    distance = len(samples) // 4
    assert distance >= 2, f"{len(samples)} samples after the first third are too few: at least 8 are needed"
    return median(later - earlier for earlier, later in zip(samples, samples[distance:], strict=False)) / distance
