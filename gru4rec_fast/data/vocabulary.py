"""The catalogue: which item id stands at which index."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from gru4rec_fast.data.ids import as_ids, decode_ids, encode_ids, is_string


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
        return is_string(self.ids)

    def index_of(self, ids: ArrayLike | Iterable[int] | Iterable[str]) -> np.ndarray:
        """Index of each id, int64 [n]; -1 where the vocabulary does not hold it.

        Raises TypeError where integers are asked of a vocabulary of strings, or the other way round.
        """
        wanted = as_ids(ids)
        if wanted.size == 0 or len(self) == 0:
            return np.full(wanted.shape, -1, np.int64)
        if is_string(wanted) != self.holds_strings:
            held, given = ("strings", "integers") if self.holds_strings else ("integers", "strings")
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
