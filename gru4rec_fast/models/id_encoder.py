"""Convert the ids of items and users to indices, and indices back to ids."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any, Literal, TypeAlias

import numpy as np

from gru4rec_fast.data import SessionStore, Vocabulary
from gru4rec_fast.data.vocabulary import as_ids

Unknown: TypeAlias = Literal["error", "skip"]
_SESSIONS_FORM = "give a list of sessions, each a list of item ids, as in [[7, 3], [7]]"


class IdEncoder:
    """Converts ids to indices of a vocabulary and back.

    Args:
        vocabulary: the ids in index order.
        unknown: "error" raises an error for an id that the vocabulary lacks; "skip" gives that id the index -1.
        kind: "item" or "user", for error messages.

    Raises:
        ValueError: `unknown` is something else.
    """

    def __init__(self, vocabulary: Vocabulary, unknown: Unknown = "error", kind: str = "item") -> None:
        if unknown not in ("error", "skip"):
            raise ValueError(f"unknown={unknown!r}: choose 'error' or 'skip'")
        self.vocabulary, self.unknown, self.kind = vocabulary, unknown, kind

    def encode(self, ids: Any, owners: Sequence[Any] | None = None, owner_kind: str = "session") -> np.ndarray:
        """Return the index of each id, int64 [n]; -1 for an unknown id that is skipped.

        Args:
            ids: any iterable of ids.
            owners: the session (or argument) that each id comes from, for the error message; None: no such prefix.
            owner_kind: what the owners are.

        Raises:
            ValueError: an unknown id, unless unknown ids are skipped.
        """
        ids = as_ids(ids, f"{self.kind}s")
        indices = self.vocabulary.index_of(ids)
        if self.unknown == "error" and (indices < 0).any():
            first = int((indices < 0).argmax())
            prefix = "" if owners is None else f"{owner_kind} {owners[first]!r}: "
            raise ValueError(
                f"{prefix}{self.kind} {ids[first : first + 1].tolist()[0]!r} is not in the vocabulary of the training "
                f"data; unknown='skip' skips such {self.kind}s"
            )
        return indices

    def encode_sessions(self, sessions: Iterable[Sequence[Any]] | SessionStore) -> tuple[np.ndarray, np.ndarray]:
        """Return the known item indices of all sessions, concatenated, and the offset of each session, int64 [n + 1].

        Raises:
            ValueError: not a list of sessions, or a store of another vocabulary; unless unknown ids are skipped, also
                an unknown id or an empty session.
        """
        if isinstance(sessions, SessionStore):
            if sessions.vocabulary != self.vocabulary:
                raise ValueError(
                    "the store has another vocabulary: read its log with vocabulary= of the training store"
                )
            items, offsets = sessions.items, sessions.offsets
        else:
            lists = [
                _as_list(session, "sessions: one of them is ", _SESSIONS_FORM)
                for session in _as_list(sessions, "sessions=", _SESSIONS_FORM)
            ]
            owners = np.repeat(np.arange(len(lists)), [len(session) for session in lists])
            encoded = self.encode(list(chain.from_iterable(lists)), owners.tolist())
            items, lengths = encoded[encoded >= 0], np.bincount(owners[encoded >= 0], minlength=len(lists))
            offsets = np.concatenate([[0], np.cumsum(lengths)])
        empty = np.flatnonzero(np.diff(offsets) == 0)
        if self.unknown == "error" and len(empty):
            raise ValueError(
                f"session {empty[0]} is empty: give at least one item per session, or unknown='skip' for a row without "
                "recommendations"
            )
        return items, offsets

    def encode_excluded(self, exclude: Any) -> np.ndarray:
        """Return the indices of the item ids in `exclude`, int64 [n], none for None; ValueError for a single id."""
        if exclude is None:
            return np.empty(0, np.int64)
        ids = _as_list(exclude, "exclude=", "give a list (or set, or array) of item ids, or exclude_seen=True")
        indices = self.encode(ids, ["exclude"] * len(ids), "argument")
        return indices[indices >= 0]

    def decode(self, indices: np.ndarray) -> np.ndarray:
        """Return the ids at these indices; where the index is -1, the id is -1, or "" where ids are strings."""
        ids = self.vocabulary.ids[indices]
        ids[indices < 0] = "" if self.vocabulary.holds_strings else -1
        return ids


def _as_list(values: Any, name: str, form: str) -> list[Any]:
    """Return the values of an iterable as a list of Python values; ValueError for a string or a value without items."""
    listed = values.tolist() if hasattr(values, "tolist") else values
    if isinstance(listed, str | bytes) or not isinstance(listed, Iterable):
        raise ValueError(f"{name}{values!r}: {form}")
    return list(listed)
