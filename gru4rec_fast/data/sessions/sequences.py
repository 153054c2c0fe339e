"""Convert sequences of item ids to an event log in memory."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from gru4rec_fast.data.sessions.events import EventLog, Events
from gru4rec_fast.data.vocabulary import STRING, Vocabulary, as_ids


def log_of_sequences(
    sequences: Iterable[Any],
    session_ids: ArrayLike | Iterable[int] | Iterable[str] | None,
    vocabulary: Vocabulary | None,
) -> EventLog:
    """Return a log with one session per sequence; see `SessionStore.from_sequences`.

    The events of sequence k have the time k. Item codes number the items of `vocabulary` first.
    """
    columns = [_items(sequence, f"sequences[{k}]") for k, sequence in enumerate(sequences)]
    if not columns:
        raise ValueError("there are no sequences: give at least one")
    is_text = [column.dtype.kind != "i" for column in columns]
    if len({*is_text}) > 1:
        k = is_text.index(not is_text[0])
        kinds = ("strings", "integers") if is_text[k] else ("integers", "strings")
        raise TypeError(f"sequences[{k}]: its ids are {kinds[0]}, but those of sequences[0] are {kinds[1]}")
    ids = np.arange(len(columns)) if session_ids is None else as_ids(session_ids, "session_ids")
    if len(ids) != len(columns):
        raise ValueError(f"session_ids has {len(ids)} elements, but there are {len(columns)} sequences")
    values, counts = np.unique(ids, return_counts=True)
    if (counts > 1).any():
        repeated = values[counts.argmax()].item() if values.dtype.kind == "i" else str(values[counts.argmax()])
        raise ValueError(f"session_ids: {repeated!r} occurs {counts.max()} times; each session needs an id of its own")
    if not (vocabulary is None or isinstance(vocabulary, Vocabulary)):
        raise TypeError(f"vocabulary must be a Vocabulary, not a {type(vocabulary).__name__}")
    items = np.concatenate(columns)
    known_ids: np.ndarray = items[:0] if vocabulary is None else vocabulary.ids
    codes = np.full(len(items), -1) if vocabulary is None else vocabulary.index_of_any_kind(items)
    is_new = codes < 0
    new_ids, new_codes = np.unique(items[is_new], return_inverse=True)
    codes[is_new] = len(known_ids) + new_codes
    if known_ids.dtype != new_ids.dtype:  # integers and strings
        known_ids, new_ids = (np.array([*map(str, ids.tolist())], STRING) for ids in (known_ids, new_ids))
    lengths = np.array([len(column) for column in columns])
    log = EventLog(np.concatenate([known_ids, new_ids]), None, {})
    sessions = np.arange(len(columns))
    log.append(Events(ids, sessions, lengths, codes.astype(np.int32), np.repeat(sessions, lengths)))
    return log


def _items(sequence: Any, name: str) -> np.ndarray:
    """Return the item ids of a sequence; `name` is for error messages."""
    if isinstance(sequence, str | bytes) or not isinstance(sequence, Iterable):
        raise TypeError(f"{name}: a sequence must be a list or array of item ids, not a {type(sequence).__name__}")
    items = as_ids(sequence, name)
    if not len(items):
        raise ValueError(f"{name} is empty: leave it out")
    return items
