"""A digest of a training log, which tells it from other logs."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from mmap import mmap

import numpy as np

from gru4rec_fast.data import SessionStore

_CHUNK_BYTES = 1 << 20


def log_fingerprint(store: SessionStore) -> str:
    """Return a digest (BLAKE2b, hexadecimal) of a store's sessions and support; takes some 2 s per GB.

    A memory-mapped array is read from its file and not through the map, since pages of a map count as this process's
    resident memory.
    """
    digest = hashlib.blake2b(digest_size=16)
    for name in ("items", "offsets", "support"):
        array = getattr(store, name)
        digest.update(f"{name} {array.dtype.str} {len(array)};".encode())
        for chunk in _chunks(array):
            digest.update(chunk)
    return digest.hexdigest()


def _chunks(array: np.ndarray) -> Iterator[bytes | memoryview]:
    base: object = array.base
    if isinstance(array, np.memmap) and isinstance(base, mmap):  # not a slice of a map
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
