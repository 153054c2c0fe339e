"""Convert the ids of items and users to indices, and indices back to ids."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any, Literal, TypeAlias

import numpy as np

from gru4rec_fast._untrusted import brief
from gru4rec_fast.data import SessionStore, Vocabulary
from gru4rec_fast.data.vocabulary import as_ids

Unknown: TypeAlias = Literal["error", "skip"]
_SESSIONS_ADVICE = "give a list of sessions, each a list of item ids, as in [[7, 3], [7]]"


class IdEncoder:
    """Converts ids to indices of a vocabulary and back.

    Args:
        vocabulary: the ids in index order.
        unknown: "error" raises an error for an id outside the vocabulary; "skip" gives that id the index -1.
        kind: "item" or "user", for error messages.

    Raises:
        ValueError: `unknown` is neither "error" nor "skip".
    """

    def __init__(self, vocabulary: Vocabulary, unknown: Unknown = "error", kind: str = "item") -> None:
        if unknown not in ("error", "skip"):
            raise ValueError(f"unknown={unknown!r}: choose 'error' or 'skip'")
        self.vocabulary, self.unknown, self.kind = vocabulary, unknown, kind

    def encode(self, ids: Any, sources: Sequence[Any] | None = None, source_kind: str = "session") -> np.ndarray:
        """Return the index of each id, int64 [n]; -1 for an unknown id that is skipped.

        Args:
            ids: any iterable of ids.
            sources: the session or argument that each id comes from, which the error message names; or None.
            source_kind: "session" or "argument".

        Raises:
            ValueError: an unknown id, unless unknown ids are skipped; `ids` is a single id.
            TypeError: ids are strings where the vocabulary has integers, or integers where it has strings.
        """
        if isinstance(ids, str | bytes) or not isinstance(ids, Iterable):
            raise ValueError(f"{self.kind}s={ids!r}: give a list (or array) of {self.kind} ids")
        ids = as_ids(ids, f"{self.kind} ids")
        try:
            indices = self.vocabulary.index_of(ids)
        except TypeError as error:
            prefix = f"{sources[0]}: " if sources and source_kind == "argument" else ""
            raise TypeError(f"{prefix}{self.kind} ids: {error}") from None
        if self.unknown == "error" and (indices < 0).any():
            first = int((indices < 0).argmax())
            prefix = "" if sources is None else f"{source_kind} {brief(sources[first])}: "
            unknown_id = ids[first : first + 1].tolist()[0]
            known = self.vocabulary.without_blanks(unknown_id)
            hint = "" if known is None else f" ({brief(known)}, without blanks around it, is)"
            raise ValueError(
                f"{prefix}{self.kind} {brief(unknown_id)} is not in the vocabulary of the training data{hint}; "
                f"unknown='skip' skips such {self.kind}s"
            )
        return indices

    def encode_sessions(self, sessions: Iterable[Sequence[Any]] | SessionStore) -> tuple[np.ndarray, np.ndarray]:
        """Return the item indices of all sessions, concatenated and without unknown items, and offsets int64 [n + 1].

        The indices are int64, or int32 from a store. Session i has the items from offsets[i] to offsets[i + 1].

        Raises:
            ValueError: not a list of sessions, or a store with another vocabulary. With unknown="error", also an
                unknown id or an empty session.
        """
        if isinstance(sessions, SessionStore):
            if sessions.vocabulary != self.vocabulary:
                raise ValueError(
                    "the store has another vocabulary: read its log with vocabulary= of the training store"
                )
            items, offsets = sessions.items, sessions.offsets
        else:
            lists = [
                as_list(session, "sessions: one of them is ", _SESSIONS_ADVICE)
                for session in as_list(sessions, "sessions=", _SESSIONS_ADVICE)
            ]
            session_of_item = np.repeat(np.arange(len(lists)), [len(session) for session in lists])
            encoded = self.encode(list(chain.from_iterable(lists)), session_of_item.tolist())
            items, lengths = encoded[encoded >= 0], np.bincount(session_of_item[encoded >= 0], minlength=len(lists))
            offsets = np.concatenate([[0], np.cumsum(lengths)])
        empty = np.flatnonzero(np.diff(offsets) == 0)
        if self.unknown == "error" and len(empty):
            raise ValueError(
                f"session {empty[0]} is empty: give at least one item per session, or unknown='skip' for a row without "
                "recommendations"
            )
        return items, offsets

    def decode(self, indices: np.ndarray) -> np.ndarray:
        """Return the ids at these indices. The id at index -1 is -1, or "" if ids are strings."""
        ids = self.vocabulary.ids[indices]
        ids[indices < 0] = "" if self.vocabulary.holds_strings else -1
        return ids


def as_list(values: Any, prefix: str, advice: str) -> list[Any]:
    """Return an iterable as a list of Python values. Raises ValueError for a string or a value that is not iterable.

    The error message consists of `prefix`, the value and `advice`.
    """
    listed = values.tolist() if hasattr(values, "tolist") else values
    if isinstance(listed, str | bytes) or not isinstance(listed, Iterable):
        raise ValueError(f"{prefix}{brief(values)}: {advice}")
    return list(listed)
