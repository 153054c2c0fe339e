"""What ingest and preparation should yield, in plain Python, and how tests compare a store with it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from gru4rec_fast.data import SessionStore

Row = tuple[object, object, float]  # session id, item id, time


@dataclass
class Session:
    """One session: its id, the row it first appeared in, and its (time, row, item) events in order."""

    id: object
    row: int
    events: list[tuple[float, int, object]]

    def key(self) -> tuple[float, int]:
        return self.events[0][0], self.row


def grouped(rows: list[Row]) -> list[Session]:
    """Sessions by time of their first event, ties in input order; events by time, equal times in input order."""
    sessions: dict[object, Session] = {}
    for row, (session, item, time) in enumerate(rows):
        sessions.setdefault(session, Session(session, row, [])).events.append((time, row, item))
    for session in sessions.values():
        session.events.sort(key=lambda event: event[:2])
    return sorted(sessions.values(), key=Session.key)


def filtered(
    sessions: list[Session], min_support: int, min_length: int, duplicates: bool, collapse: bool
) -> list[Session]:
    """What stays when no further rule removes anything."""
    kept = sessions
    if duplicates:
        kept = [
            Session(s.id, s.row, list({(t, i): (t, r, i) for t, r, i in reversed(s.events)}.values())) for s in kept
        ]
        for session in kept:
            session.events.sort(key=lambda event: event[:2])
    while True:
        before = sum(len(s.events) for s in kept)
        support = Counter(item for s in kept for _, _, item in s.events)
        kept = [Session(s.id, s.row, [e for e in s.events if support[e[2]] >= min_support]) for s in kept]
        if collapse:
            kept = [Session(s.id, s.row, [e for j, e in enumerate(s.events) if j == 0 or s.events[j - 1][2] != e[2]])
                    for s in kept]  # fmt: skip
        kept = [s for s in kept if len(s.events) >= max(min_length, 1)]
        if sum(len(s.events) for s in kept) == before:
            return sorted(kept, key=Session.key)


def without_unseen(sessions: list[Session], known: set[object], min_length: int, collapse: bool) -> list[Session]:
    """A held-out part: items of the training part only, then sessions that are long enough."""
    kept = [Session(s.id, s.row, [e for e in s.events if e[2] in known]) for s in sessions]
    return filtered(kept, 1, max(2, min_length), False, collapse)


def items_of(sessions: list[Session]) -> list[object]:
    """The catalogue in order of first appearance."""
    return list(dict.fromkeys(item for s in sessions for _, _, item in s.events))


def assert_store_is(store: SessionStore, sessions: list[Session], catalogue: list[object] | None = None) -> None:
    """The store holds exactly these sessions, in this order, with this catalogue (default: by first appearance)."""
    catalogue = items_of(sessions) if catalogue is None else catalogue
    assert store.vocabulary.ids.tolist() == catalogue
    assert store.session_ids.tolist() == [s.id for s in sessions]
    assert store.start_times.tolist() == [s.events[0][0] for s in sessions]
    assert store.end_times.tolist() == [s.events[-1][0] for s in sessions]
    found = [catalogue[i] for i in store.items.tolist()]
    edges = store.offsets.tolist()
    assert edges[0] == 0 and edges[-1] == len(found)
    assert [found[a:b] for a, b in zip(edges, edges[1:])] == [[e[2] for e in s.events] for s in sessions]  # noqa: B905, RUF007
    support = Counter(found)
    assert store.support.tolist() == [support[item] for item in catalogue]
    assert store.n_targets == sum(len(s.events) - 1 for s in sessions)


def assert_same_store(one: SessionStore, other: SessionStore) -> None:
    """The two stores hold the same, down to the types."""
    for name in ("items", "offsets", "start_times", "end_times", "support", "session_ids"):
        a, b = getattr(one, name), getattr(other, name)
        assert a.dtype == b.dtype and a.tolist() == b.tolist(), name
    assert one.vocabulary == other.vocabulary


@contextmanager
def tiny_pieces(batch_rows: int = 3, partitions: int = 4, block_events: int = 5) -> Iterator[None]:
    """Send even the smallest log through the path of a log larger than memory."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gru4rec_fast.data.tables.BATCH_ROWS", batch_rows)
        patch.setattr("gru4rec_fast.data.sessions.ingest.PARTITIONS", partitions)
        patch.setattr("gru4rec_fast.data.sessions.assembly.BLOCK_EVENTS", block_events)
        yield
