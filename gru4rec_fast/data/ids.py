"""Item and session ids: int64 or strings, in memory as one NumPy array, on disk without pickle."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

STRING = np.dtypes.StringDType()
_BLOCK = 1 << 20  # strings turned into Python objects at a time


def as_ids(values: ArrayLike | Iterable[int] | Iterable[str], what: str = "ids") -> np.ndarray:
    """A one-dimensional array of ids: int64 where they are integers, StringDType where they are strings.

    Raises TypeError for anything else (floats, booleans, mixtures, missing values).
    """
    if isinstance(values, np.ndarray):
        array = values
    else:
        listed = _listed(values)
        if len(listed) and all(isinstance(value, str) for value in listed):
            return np.array(list(listed), STRING)  # np.asarray would cut zero characters off the ends
        array = np.asarray(listed)
    if array.ndim != 1:
        raise ValueError(f"{what}: a one-dimensional sequence of ids is needed, this one has shape {array.shape}")
    if array.size == 0 and array.dtype.kind == "f":  # np.asarray([]) is float64
        return np.empty(0, np.int64)
    if array.dtype.kind in "iu":
        if array.dtype == np.uint64 and array.size and array.max() > np.iinfo(np.int64).max:
            raise TypeError(f"{what}: integer ids must fit int64; give them as strings")
        return array.astype(np.int64, copy=False)
    if array.dtype.kind == "T":
        return array
    if array.dtype.kind == "U":
        if not isinstance(values, np.ndarray):  # NumPy turns a mixture such as [1, "a"] into strings without a word
            raise TypeError(f"{what}: all ids must be integers, or all strings")
        return array.astype(STRING)
    if array.dtype.kind == "O":
        if all(isinstance(v, str) for v in array):
            return array.astype(STRING)
        if all(isinstance(v, (int, np.integer)) and not isinstance(v, bool) for v in array):
            return array.astype(np.int64)
    raise TypeError(f"{what}: ids must be all integers or all strings, not {array.dtype}")


def is_string(ids: np.ndarray) -> bool:
    """True for an array of string ids, False for int64 ids."""
    return ids.dtype.kind == "T"


def encode_ids(ids: np.ndarray) -> dict[str, np.ndarray]:
    """Ids as plain numeric arrays: {"ids": int64 [n]}, or {"utf8": uint8 [bytes], "offsets": int64 [n + 1]}."""
    if not is_string(ids):
        return {"ids": ids}
    offsets = np.zeros(len(ids) + 1, np.int64)
    blocks = [np.empty(0, np.uint8)]
    for start in range(0, len(ids), _BLOCK):
        encoded = [text.encode() for text in ids[start : start + _BLOCK].tolist()]
        offsets[start + 1 : start + 1 + len(encoded)] = [len(text) for text in encoded]
        blocks.append(np.frombuffer(b"".join(encoded), np.uint8))
    return {"utf8": np.concatenate(blocks), "offsets": np.cumsum(offsets)}


def decode_ids(arrays: Mapping[str, Any]) -> np.ndarray:
    """The inverse of `encode_ids`; takes arrays or anything `np.asarray` takes."""
    if "ids" in arrays:
        return np.asarray(arrays["ids"])
    offsets = np.asarray(arrays["offsets"])
    utf8 = np.asarray(arrays["utf8"]).tobytes()
    ids = np.empty(len(offsets) - 1, STRING)
    for start in range(0, len(ids), _BLOCK):
        edges = offsets[start : start + _BLOCK + 1].tolist()
        ids[start : start + _BLOCK] = [utf8[a:b].decode() for a, b in pairwise(edges)]
    return ids


def _listed(values: Any) -> Any:
    return values if hasattr(values, "__len__") else list(values)
