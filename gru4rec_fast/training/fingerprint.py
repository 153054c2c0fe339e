"""What tells one training log from another."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from mmap import mmap

import numpy as np

from gru4rec_fast.data import SessionStore

_CHUNK_BYTES = 1 << 20


def log_fingerprint(store: SessionStore) -> str:
    """A digest (BLAKE2b, hexadecimal) of a store's sessions and support; some two seconds per billion bytes.

    A memory-mapped array is read from its file, not through the map: pages read through a map count as memory of this
    process for as long as they are cached.
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
    if isinstance(array, np.memmap) and isinstance(base, mmap):  # the whole map, no part of one
        with open(str(array.filename), "rb") as file:
            file.seek(array.offset)
            left = array.nbytes
            while left and (chunk := file.read(min(left, _CHUNK_BYTES))):
                yield chunk
                left -= len(chunk)
        return
    length = max(1, _CHUNK_BYTES // array.itemsize)
    for start in range(0, len(array), length):
        yield np.ascontiguousarray(array[start : start + length]).data
