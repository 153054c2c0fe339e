"""Computes a digest of a training log, which shows whether a checkpoint was trained on this log."""

from __future__ import annotations

import hashlib

import numpy as np

from gru4rec_fast.data import SessionStore
from gru4rec_fast.data.array_folder import read_chunks


def log_fingerprint(store: SessionStore) -> str:
    """Return a digest (BLAKE2b, hexadecimal) of the sessions and the support of a store; this takes about 2 s per GB.

    The support of an item is the number of its occurrences in the training log.
    """
    digest = hashlib.blake2b(digest_size=16)
    for name in ("items", "offsets", "support"):
        array = getattr(store, name)
        digest.update(f"{name} {array.dtype.str} {len(array)};".encode())
        for chunk in read_chunks(array):
            digest.update(np.ascontiguousarray(chunk).data)
    return digest.hexdigest()
