"""Ids of items, sessions and users (int64 or strings): checks, encoding for files, and lookup of their indices."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from gru4rec_fast._untrusted import brief

# The dtype of string ids; NumPy before version 2 has no StringDType.
STRING: np.dtype = np.dtypes.StringDType() if hasattr(np.dtypes, "StringDType") else np.dtype(object)
_BLOCK = 1 << 20  # number of strings that are converted to Python objects at a time


def as_ids(values: ArrayLike | Iterable[int] | Iterable[str], name: str = "ids") -> np.ndarray:
    """Convert ids to a one-dimensional array: int64 if they are integers, `STRING` if they are strings.

    Raises TypeError for anything else (floats, booleans, mixtures, missing values), and ValueError for arrays that
    are not one-dimensional. Messages begin with `name`.
    """
    if isinstance(values, np.ndarray):
        array = values
    elif isinstance(values, Set):
        raise TypeError(f"{name}: ids must be a sequence, not a {type(values).__name__}, which has no order: sort it")
    else:
        listed: Any = values if hasattr(values, "__len__") else list(values)  # type: ignore[arg-type]
        if len(listed) and all(isinstance(value, str) for value in listed):
            return np.array(list(listed), STRING)  # np.asarray would strip trailing NUL characters
        array = np.asarray(listed)
    if array.ndim != 1:
        raise ValueError(f"{name}: ids must be a one-dimensional sequence, not one of shape {array.shape}")
    if array.size == 0 and array.dtype.kind == "f":  # np.asarray([]) is float64
        return np.empty(0, np.int64)
    if array.dtype.kind in "iu":
        if array.dtype == np.uint64 and array.size and array.max() > np.iinfo(np.int64).max:
            raise TypeError(f"{name}: integer ids must fit int64; give them as strings")
        return array.astype(np.int64, copy=False)
    if array.dtype.kind == "T":
        if array.dtype != STRING and not all(isinstance(value, str) for value in array.tolist()):
            raise TypeError(f"{name}: ids must be all integers or all strings, without missing values")
        return array.astype(STRING, copy=False)
    if array.dtype.kind == "U":
        if not isinstance(values, np.ndarray):  # NumPy silently converts a mixture such as [1, "a"] to strings
            raise TypeError(f"{name}: ids must be all integers or all strings, not a mixture")
        return array.astype(STRING)
    if array.dtype.kind == "O":
        if all(isinstance(v, str) for v in array):
            return array.astype(STRING)
        if all(isinstance(v, (int, np.integer)) and not isinstance(v, bool) for v in array):
            if not all(_fits_int64(int(v)) for v in array):
                raise TypeError(f"{name}: integer ids must fit int64; give them as strings")
            return array.astype(np.int64)
    raise TypeError(f"{name}: ids must be all integers or all strings, not {array.dtype}")


def as_indices(values: ArrayLike, name: str) -> np.ndarray:
    """Return indices or offsets as a one-dimensional int64 array. Raises ValueError for another shape or dtype.

    `name` is the name of the argument in the message.
    """
    array = np.asarray(values)
    if array.size == 0:
        array = array.astype(np.int64)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise ValueError(f"{name} must be a one-dimensional integer array, not {array.dtype} of shape {array.shape}")
    return array.astype(np.int64, copy=False)


def kind_of(ids: np.ndarray) -> str:
    """Return "strings" or "integers", for error messages."""
    return "strings" if ids.dtype == STRING else "integers"


def encode_ids(ids: np.ndarray) -> dict[str, np.ndarray]:
    """Convert ids to numeric arrays: {"ids": int64 [n]}, or {"utf8": uint8 [bytes], "offsets": int64 [n + 1]}."""
    if ids.dtype != STRING:
        return {"ids": ids}
    offsets = np.zeros(len(ids) + 1, np.int64)
    blocks = [np.empty(0, np.uint8)]
    for start in range(0, len(ids), _BLOCK):
        encoded = [text.encode() for text in ids[start : start + _BLOCK].tolist()]
        offsets[start + 1 : start + 1 + len(encoded)] = [len(text) for text in encoded]
        blocks.append(np.frombuffer(b"".join(encoded), np.uint8))
    return {"utf8": np.concatenate(blocks), "offsets": np.cumsum(offsets)}


def decode_ids(arrays: Mapping[str, Any]) -> np.ndarray:
    """Invert `encode_ids`. The values may be anything that `np.asarray` accepts, such as CPU tensors.

    Raises ValueError if the arrays are damaged.
    """
    if "ids" in arrays:
        return np.asarray(arrays["ids"])
    offsets, utf8_array = np.asarray(arrays["offsets"]), np.asarray(arrays["utf8"])
    utf8 = utf8_array.tobytes()
    is_valid = utf8_array.dtype == np.uint8 and offsets.dtype == np.int64 and offsets.ndim == 1 and len(offsets) > 0
    if not is_valid or offsets[0] != 0 or offsets[-1] != len(utf8) or (offsets[1:] < offsets[:-1]).any():
        raise ValueError("offsets of string ids must be int64, non-decreasing, from 0 to the length of the uint8 text")
    ids = np.empty(len(offsets) - 1, STRING)
    for start in range(0, len(ids), _BLOCK):
        bounds = offsets[start : start + _BLOCK + 1].tolist()
        ids[start : start + _BLOCK] = [utf8[first:end].decode() for first, end in pairwise(bounds)]
    return ids


def _fits_int64(number: int) -> bool:
    return -(1 << 63) <= number < 1 << 63


def _plain_integer(text: str) -> int | None:
    """Return the int64 number that is written like `text`; None for other text, such as "x7", "007" and "+7"."""
    try:
        number = int(text)
    except ValueError:
        return None
    return number if str(number) == text and _fits_int64(number) else None


class Vocabulary:
    """Maps ids to indices and back: the item with index `i`, as in `SessionStore.items`, has the id `ids[i]`.

    A graph also has a vocabulary of users.

    Args:
        ids: unique integer or string ids in the order of their indices.

    Raises:
        TypeError: ids are neither all integers nor all strings.
        ValueError: an id occurs twice, or ids are not one-dimensional.
    """

    def __init__(self, ids: ArrayLike | Iterable[int] | Iterable[str]) -> None:
        self.ids = as_ids(ids, "vocabulary")
        """int64 [n], or an array of str [n] (StringDType; object before NumPy 2)."""
        self._order = np.argsort(self.ids, kind="stable")
        self._sorted = self.ids[self._order]
        repeated = np.flatnonzero(self._sorted[1:] == self._sorted[:-1])
        if repeated.size:
            repeated_id = brief(self._sorted[repeated[:1]].tolist()[0])
            raise ValueError(f"vocabulary: the id {repeated_id} occurs more than once")

    def __len__(self) -> int:
        return len(self.ids)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Vocabulary):
            return NotImplemented
        return self.ids.dtype == other.ids.dtype and np.array_equal(self.ids, other.ids)

    __hash__ = None  # type: ignore[assignment]  # equality compares arrays, which cannot be hashed

    def __repr__(self) -> str:
        return f"Vocabulary({len(self):,} {'string' if self.holds_strings else 'integer'} ids)"

    @property
    def holds_strings(self) -> bool:
        """True if the ids are strings, False if they are int64."""
        return self.ids.dtype == STRING

    def index_of(self, ids: ArrayLike | Iterable[int] | Iterable[str]) -> np.ndarray:
        """Return the index of each id, int64 [n], or -1 for an id that the vocabulary does not hold.

        Raises TypeError for integer ids if the vocabulary holds strings, and for strings if it holds integers.
        """
        queries = as_ids(ids)
        if queries.size == 0 or len(self) == 0:
            return np.full(queries.shape, -1, np.int64)
        if kind_of(queries) != kind_of(self.ids):
            raise TypeError(f"the vocabulary holds {kind_of(self.ids)} as ids, but {kind_of(queries)} were given")
        if self.holds_strings:
            return np.array([self._index.get(text, -1) for text in queries.tolist()], np.int64)
        # Sorted queries read the sorted ids front to back; queries in random order would miss the cache each time.
        unique, inverse = np.unique(queries, return_inverse=True)
        slot = np.minimum(np.searchsorted(self._sorted, unique), len(self) - 1)
        return np.where(self._sorted[slot] == unique, self._order[slot], -1)[inverse]

    def index_of_any_kind(self, ids: ArrayLike | Iterable[int] | Iterable[str]) -> np.ndarray:
        """Return the index of each id as `index_of` does, but take the integer 7 and the string "7" for the same id.

        Use it for the ids in a file, which are integers or strings depending on the other ids in that file. Strings
        that are no plain integers, such as "007" and "x7", are unknown to a vocabulary of integers.
        """
        queries = as_ids(ids)
        if kind_of(queries) == kind_of(self.ids):
            return self.index_of(queries)
        if self.holds_strings:
            return self.index_of(np.array([str(number) for number in queries.tolist()], STRING))
        integers = [_plain_integer(text) for text in queries.tolist()]
        is_integer = np.array([integer is not None for integer in integers], bool)
        indices = np.full(len(queries), -1, np.int64)
        indices[is_integer] = self.index_of(np.array([i for i in integers if i is not None], np.int64))
        return indices

    def as_own_kind(self, ids: np.ndarray) -> np.ndarray:
        """Return ids of a file as integers or strings, whichever the vocabulary has: "7" as 7, or 7 as "7".

        Raises TypeError if the vocabulary has integers, and an id is no plain integer.
        """
        if kind_of(ids) == kind_of(self.ids) or not len(self):
            return ids
        if self.holds_strings:
            return np.array([str(number) for number in ids.tolist()], STRING)
        integers = [_plain_integer(text) for text in ids.tolist()]
        if None in integers:
            unknown = brief(ids.tolist()[integers.index(None)])
            raise TypeError(
                f"the vocabulary holds integers as ids, but {unknown} is given; ids must be all of one kind"
            )
        return np.array(integers, np.int64)

    def extended(self, ids: ArrayLike | Iterable[int] | Iterable[str]) -> Vocabulary:
        """Return a vocabulary with the ids of this one and then, in sorted order, those of `ids` that it does not hold.

        Raises TypeError for integer ids if the vocabulary holds strings, and for strings if it holds integers.
        """
        queries = as_ids(ids)
        unknown = np.unique(queries[self.index_of(queries) < 0])
        return Vocabulary(np.concatenate([self.ids, unknown])) if len(unknown) else self

    def without_blanks(self, unknown_id: Any) -> str | None:
        """Return an unknown id without the blanks around it; None if the vocabulary does not hold the result.

        For an error message: blanks are removed from the ids of text files only, and not from those of data frames.
        """
        stripped = unknown_id.strip() if isinstance(unknown_id, str) else unknown_id
        return stripped if stripped != unknown_id and self.index_of_any_kind([stripped])[0] >= 0 else None

    @cached_property
    def _index(self) -> dict[str, int]:
        # A dict, because np.searchsorted of one StringDType array in another is broken in NumPy 2.4: it reads the
        # strings of one array from the memory of the other (MemoryError, or worse).
        return {text: index for index, text in enumerate(self.ids.tolist())}

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Return the ids as numeric arrays, for a checkpoint: {"ids": int64} or {"utf8": uint8, "offsets": int64}."""
        return encode_ids(self.ids)

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Any]) -> Vocabulary:
        """Return the vocabulary of arrays from `to_arrays`; the values may be NumPy arrays or CPU tensors."""
        return cls(decode_ids(arrays))


# Sizes up to this one are taken from the largest index, even if there are few indices.
_MAX_INFERRED = 1 << 20


def check_indices(
    values: ArrayLike, name: str, count: int | None, vocabulary: Vocabulary | None
) -> tuple[np.ndarray, int]:
    """Return indices of users or items as int64, and the number of users or items.

    `name` is "users" or "items". Their number is `count`, or `len(vocabulary)`, or else the largest index + 1. Raises
    ValueError if an index is out of range, if `count` and `vocabulary` disagree, or if the values look like ids.
    """
    array = as_indices(values, name)
    if vocabulary is not None and count not in (None, len(vocabulary)):
        raise ValueError(f"n_{name}={count}, but there are {len(vocabulary)} ids of {name}")
    if vocabulary is not None:
        count = len(vocabulary)
    elif count is None:
        count = int(array.max()) + 1 if len(array) else 0
        if count > max(_MAX_INFERRED, 100 * len(array)):
            raise ValueError(
                f"{name}: the largest index is {count - 1}, but there are only {len(array)} values: for indices, give "
                f"n_{name}; ids are numbered by SessionStore.from_events or InteractionGraph.from_table"
            )
    if len(array) and (array.min() < 0 or array.max() >= count):
        i = int(((array < 0) | (array >= count)).argmax())
        raise ValueError(f"{name}[{i}]={array[i]} is out of range: there are {count} {name}, counted from 0")
    return array, count
