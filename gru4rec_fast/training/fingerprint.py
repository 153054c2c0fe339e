"""Computes a digest of a training log, which shows whether a checkpoint was trained on this log."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from mmap import mmap

import numpy as np

from gru4rec_fast.data import SessionStore

_CHUNK_BYTES = 1 << 20


def log_fingerprint(store: SessionStore) -> str:
    """Return a digest (BLAKE2b, hexadecimal) of the sessions and the support of a store; this takes about 2 s per GB.

    The support of an item is the number of its occurrences in the training log. A memory-mapped array is read from the
    file and not through the map, since pages that are read through the map count as resident memory of this process.
    """
    digest = hashlib.blake2b(digest_size=16)
    for name in ("items", "offsets", "support"):
        array = getattr(store, name)
        digest.update(f"{name} {array.dtype.str} {len(array)};".encode())
        for chunk in _chunks(array):
            digest.update(chunk)
    return digest.hexdigest()


def _chunks(array: np.ndarray) -> Iterator[bytes | memoryview]:
    """Yield the bytes of an array, at most `_CHUNK_BYTES` at a time."""
    base: object = array.base
    if isinstance(array, np.memmap) and isinstance(base, mmap):  # the array is a whole map, not a slice of one
        with open(str(array.filename), "rb") as file:
            file.seek(array.offset)
            n_bytes = array.nbytes
            while n_bytes and (chunk := file.read(min(n_bytes, _CHUNK_BYTES))):
                yield chunk
                n_bytes -= len(chunk)
        return
    length = max(1, _CHUNK_BYTES // array.itemsize)
    for start in range(0, len(array), length):
        yield np.ascontiguousarray(array[start : start + length]).data
