"""Lists of the only items that `recommend` ranks (candidates), or that it leaves out (exclude), for all or each row."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from gru4rec_fast._untrusted import brief
from gru4rec_fast.data import Vocabulary
from gru4rec_fast.models.id_encoder import IdEncoder, Unknown, as_list

_ADVICE = {
    "candidates": "give a list (or set, or array) of item ids, one such list for each row, or a CandidatePool",
    "exclude": "give a list (or set, or array) of item ids, or exclude_seen=True, or one such list for each row",
}


class CandidatePool:
    """The only items that may be recommended, encoded once for many calls of `recommend`.

        pool = CandidatePool(model.vocabulary, recent_items)
        model.recommend(sessions, candidates=pool)

    A pool does not change, so several threads can share it. It does not hold weights: after further training of a model
    it is still valid.

    Args:
        vocabulary: the item ids of the model: `GRU4Rec.vocabulary`, or `graph.items` of a graph model.
        ids: item ids, in any order; repeated ids count once.
        unknown: "error" raises an error for an id outside the vocabulary; "skip" ignores that id.

    Attributes:
        vocabulary: the argument.
        indices: the items' indices in the vocabulary, int64 [n], ascending; read-only.

    Raises:
        ValueError: an unknown id, unless `unknown` is "skip"; `ids` is not a list of ids.
        TypeError: ids are strings where the vocabulary has integers, or integers where it has strings.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        ids: ArrayLike | Iterable[int] | Iterable[str],
        *,
        unknown: Unknown = "error",
    ) -> None:
        self.vocabulary = vocabulary
        self.indices = _encode(IdEncoder(vocabulary, unknown), ids, "candidates")
        self.indices.flags.writeable = False

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def nbytes(self) -> int:
        """Number of bytes of `indices`. The vocabulary does not count, as it belongs to the model."""
        return self.indices.nbytes


class RowLists(NamedTuple):
    """The list of items of each row of a result.

    lists: distinct item indices, int64 [n], ascending. If there is only one list, it is for all rows.
    list_of_row: index into `lists` for each row, int64 [n_rows].
    """

    lists: list[np.ndarray]
    list_of_row: np.ndarray


def encode_row_lists(values: Any, name: str, encoder: IdEncoder, n_rows: int) -> RowLists:
    """Return the item indices of the argument `name` of `recommend`, without unknown ids that are skipped.

    Args:
        values: item ids, for all rows; or a sequence with such a list for each row; a list may be a CandidatePool.
        name: "candidates" or "exclude".
        encoder: the item encoder.
        n_rows: number of rows of the result.

    Raises:
        ValueError: an unknown id, a single id, ids and lists of ids in one list, or not one list for each row; a pool
            of another vocabulary.
        TypeError: ids are strings where the vocabulary has integers, or integers where it has strings.
    """
    if isinstance(values, CandidatePool) or _is_array_of_ids(values):
        return RowLists([_encode(encoder, values, name)], np.zeros(n_rows, np.int64))
    rows = as_list(values, f"{name}=", _ADVICE[name])
    is_list = [_is_list(row) for row in rows]
    if not any(is_list):
        return RowLists([_encode(encoder, rows, name)], np.zeros(n_rows, np.int64))
    if not all(is_list):
        raise ValueError(f"{name}={brief(values)} has both ids and lists of ids: {_ADVICE[name]}")
    if len(rows) != n_rows:
        raise ValueError(
            f"{name} has {len(rows)} lists of ids for {n_rows} rows: give one list for each row, or one list of ids, "
            "which is for all rows"
        )
    # The number (from 1) of the list that a row was encoded to, or 0. Rows that are the same object share a list.
    list_numbers = {id(row): 0 for row in rows}
    lists = []
    for row_number, row in enumerate(rows):
        if list_numbers[id(row)] == 0:
            lists.append(_encode(encoder, row, f"{name}[{row_number}]"))
            list_numbers[id(row)] = len(lists)
    return RowLists(lists, np.array([list_numbers[id(row)] for row in rows]) - 1)


def _encode(encoder: IdEncoder, ids: Any, name: str) -> np.ndarray:
    """Return the distinct indices of the known ids of one list, int64 [n], ascending; `name` is for error messages."""
    if isinstance(ids, CandidatePool):
        if ids.vocabulary is not encoder.vocabulary and ids.vocabulary != encoder.vocabulary:
            raise ValueError(f"{name}: the pool was made with another vocabulary; make one with the model's vocabulary")
        return ids.indices
    if not _is_array_of_ids(ids):
        ids = as_list(ids, f"{name}=", _ADVICE[name.partition("[")[0]])
    indices = encoder.encode(ids, [name] * len(ids), "argument")
    return np.unique(indices[indices >= 0])


def _is_array_of_ids(values: Any) -> bool:
    return isinstance(values, np.ndarray) and values.ndim == 1 and values.dtype != object


def _is_list(value: Any) -> bool:
    """Return whether an element of a list is itself a list of ids."""
    if isinstance(value, int | str | bytes):  # the common types first, which is faster
        return False
    return isinstance(value, CandidatePool | Iterable)
