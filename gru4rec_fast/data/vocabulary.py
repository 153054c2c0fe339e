"""Item, session and user ids: int64 or strings; as one NumPy array, as numeric arrays for a file, and by index."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property
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
        listed: Any = values if hasattr(values, "__len__") else list(values)  # type: ignore[arg-type]
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


def as_indices(values: ArrayLike, name: str) -> np.ndarray:
    """A one-dimensional int64 array of indices or offsets; ValueError names any other argument."""
    array = np.asarray(values)
    if array.size == 0:
        array = array.astype(np.int64)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise ValueError(f"{name} must be a one-dimensional integer array, not {array.dtype} of shape {array.shape}")
    return array.astype(np.int64, copy=False)


def kind_of(ids: np.ndarray) -> str:
    """What an array of ids holds, for an error: "strings" or "integers"."""
    return "strings" if ids.dtype.kind == "T" else "integers"


def encode_ids(ids: np.ndarray) -> dict[str, np.ndarray]:
    """Ids as plain numeric arrays: {"ids": int64 [n]}, or {"utf8": uint8 [bytes], "offsets": int64 [n + 1]}."""
    if ids.dtype.kind != "T":
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


class Vocabulary:
    """Item ids in index order: item `i` of every table and every `SessionStore.items` has the id `ids[i]`.

    Args:
        ids: unique integer or string ids; position is index.

    Raises:
        TypeError: ids are neither all integers nor all strings.
        ValueError: an id occurs twice, or ids are not one-dimensional.
    """

    def __init__(self, ids: ArrayLike | Iterable[int] | Iterable[str]) -> None:
        self.ids = as_ids(ids, "vocabulary")
        """int64 [n], or an array of str [n] (NumPy StringDType)."""
        self._order = np.argsort(self.ids, kind="stable")
        self._sorted = self.ids[self._order]
        repeated = np.flatnonzero(self._sorted[1:] == self._sorted[:-1])
        if repeated.size:
            raise ValueError(f"vocabulary: the id {self._sorted[repeated[:1]].tolist()[0]!r} occurs more than once")

    def __len__(self) -> int:
        return len(self.ids)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Vocabulary):
            return NotImplemented
        return self.ids.dtype == other.ids.dtype and np.array_equal(self.ids, other.ids)

    __hash__ = None  # type: ignore[assignment]  # it compares by value and holds arrays

    def __repr__(self) -> str:
        return f"Vocabulary({len(self):,} {'string' if self.holds_strings else 'integer'} ids)"

    @property
    def holds_strings(self) -> bool:
        """True where the ids are strings, False where they are int64."""
        return self.ids.dtype.kind == "T"

    def index_of(self, ids: ArrayLike | Iterable[int] | Iterable[str]) -> np.ndarray:
        """Index of each id, int64 [n]; -1 where the vocabulary does not hold it.

        Raises TypeError where integers are asked of a vocabulary of strings, or the other way round.
        """
        wanted = as_ids(ids)
        if wanted.size == 0 or len(self) == 0:
            return np.full(wanted.shape, -1, np.int64)
        held, given = kind_of(self.ids), kind_of(wanted)
        if held != given:
            raise TypeError(f"the vocabulary holds {held} as item ids, but {given} were asked for")
        if self.holds_strings:
            return np.array([self._index.get(text, -1) for text in wanted.tolist()], np.int64)
        # Searching sorted queries walks the table once, front to back; random ones would miss the cache each time.
        unique, inverse = np.unique(wanted, return_inverse=True)
        slot = np.minimum(np.searchsorted(self._sorted, unique), len(self) - 1)
        return np.where(self._sorted[slot] == unique, self._order[slot], -1)[inverse]

    @cached_property
    def _index(self) -> dict[str, int]:
        # NumPy 2.4 searches an array of strings for those of another array in the wrong arena (MemoryError, or worse).
        return {text: index for index, text in enumerate(self.ids.tolist())}

    def to_arrays(self) -> dict[str, np.ndarray]:
        """The ids as numeric arrays, for a checkpoint: {"ids": int64} or {"utf8": uint8, "offsets": int64}."""
        return encode_ids(self.ids)

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Any]) -> Vocabulary:
        """The vocabulary that `to_arrays` wrote; values may be NumPy arrays or CPU tensors."""
        return cls(decode_ids(arrays))
