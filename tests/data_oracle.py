"""A plain-Python specification of ingest and preparation, and assertions that compare a store with its results."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise

import pytest

from gru4rec_fast.data import SessionStore

Row = tuple[object, object, float]  # session id, item id, time


@dataclass
class Session:
    """A session: its id, the first input row it appears in, and its events (time, row, item), sorted by time."""

    id: object
    row: int
    events: list[tuple[float, int, object]]

    def key(self) -> tuple[float, int]:
        return self.events[0][0], self.row


def grouped(rows: list[Row]) -> list[Session]:
    """Group rows by session. Sessions are sorted by their first event, events by time; ties keep the input order."""
    sessions: dict[object, Session] = {}
    for row, (session, item, time) in enumerate(rows):
        sessions.setdefault(session, Session(session, row, [])).events.append((time, row, item))
    for session in sessions.values():
        session.events.sort(key=lambda event: event[:2])
    return sorted(sessions.values(), key=Session.key)


def filtered(
    sessions: list[Session], min_support: int, min_length: int, duplicates: bool, collapse: bool
) -> list[Session]:
    """Apply the filters until nothing changes, and return the remaining sessions."""
    kept = sessions
    if duplicates:
        kept = [
            Session(s.id, s.row, list({(t, i): (t, r, i) for t, r, i in reversed(s.events)}.values())) for s in kept
        ]
        for session in kept:
            session.events.sort(key=lambda event: event[:2])
    while True:
        n_events = sum(len(s.events) for s in kept)
        support = Counter(item for s in kept for _, _, item in s.events)
        kept = [Session(s.id, s.row, [e for e in s.events if support[e[2]] >= min_support]) for s in kept]
        if collapse:
            kept = [Session(s.id, s.row, [e for j, e in enumerate(s.events) if j == 0 or s.events[j - 1][2] != e[2]])
                    for s in kept]  # fmt: skip
        kept = [s for s in kept if len(s.events) >= max(min_length, 1)]
        if sum(len(s.events) for s in kept) == n_events:
            return sorted(kept, key=Session.key)


def without_unseen(sessions: list[Session], known: set[object], min_length: int, collapse: bool) -> list[Session]:
    """Filter a held-out part: remove items that are not in `known`, then sessions that are too short."""
    kept = [Session(s.id, s.row, [e for e in s.events if e[2] in known]) for s in sessions]
    return filtered(kept, 1, max(2, min_length), False, collapse)


def items_of(sessions: list[Session]) -> list[object]:
    """Return the catalogue in order of first appearance."""
    return list(dict.fromkeys(item for s in sessions for _, _, item in s.events))


def assert_store_is(store: SessionStore, sessions: list[Session], catalogue: list[object] | None = None) -> None:
    """Assert that the store holds these sessions in this order. Default catalogue: `items_of(sessions)`."""
    catalogue = items_of(sessions) if catalogue is None else catalogue
    assert store.vocabulary.ids.tolist() == catalogue
    assert store.session_ids.tolist() == [s.id for s in sessions]
    assert store.start_times.tolist() == [s.events[0][0] for s in sessions]
    assert store.end_times.tolist() == [s.events[-1][0] for s in sessions]
    items = [catalogue[i] for i in store.items.tolist()]
    bounds = store.offsets.tolist()
    assert bounds[0] == 0 and bounds[-1] == len(items)
    assert [items[a:b] for a, b in pairwise(bounds)] == [[e[2] for e in s.events] for s in sessions]
    support = Counter(items)
    assert store.support.tolist() == [support[item] for item in catalogue]
    assert store.n_targets == sum(len(s.events) - 1 for s in sessions)


def assert_same_store(one: SessionStore, other: SessionStore) -> None:
    """Assert that two stores are equal, including dtypes."""
    for name in ("items", "offsets", "start_times", "end_times", "support", "session_ids"):
        a, b = getattr(one, name), getattr(other, name)
        assert a.dtype == b.dtype and a.tolist() == b.tolist(), name
    assert one.vocabulary == other.vocabulary


@contextmanager
def tiny_batches(batch_rows: int = 3, partitions: int = 4, block_events: int = 5) -> Iterator[None]:
    """Process even a tiny log as one that is larger than memory: in several batches, partitions and blocks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gru4rec_fast.data.tables.BATCH_ROWS", batch_rows)
        patch.setattr("gru4rec_fast.data.sessions.ingest.PARTITIONS", partitions)
        patch.setattr("gru4rec_fast.data.sessions.assembly.BLOCK_EVENTS", block_events)
        yield
