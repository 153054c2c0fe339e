"""Ingest and preparation of session logs in plain Python, as a reference. Assertions that compare stores with it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise

import pytest

from gru4rec_fast.data import SessionStore

Row = tuple[object, object, float]  # session id, item id, time
Event = tuple[float, int, object]  # time, input row, item id


@dataclass
class Session:
    """A session: its id, the first input row it appears in, and its events, sorted by time, then row."""

    id: object
    first_row: int
    events: list[Event]

    def sort_key(self) -> tuple[float, int]:
        return self.events[0][0], self.first_row


def group_by_session(rows: list[Row]) -> list[Session]:
    """Group rows by session. Sessions are sorted by the time of their first event, events by time, then input row."""
    sessions: dict[object, Session] = {}
    for row, (session, item, time) in enumerate(rows):
        sessions.setdefault(session, Session(session, row, [])).events.append((time, row, item))
    for session in sessions.values():
        session.events.sort(key=_time_and_row)
    return sorted(sessions.values(), key=Session.sort_key)


def apply_filters(
    sessions: list[Session], min_support: int, min_length: int, remove_duplicates: bool, collapse: bool
) -> list[Session]:
    """Apply the filters until nothing changes, and return the remaining sessions.

    `min_support` is the number of events that an item needs, `min_length` the number that a session needs.
    `remove_duplicates` keeps the first of several events with equal time and item; `collapse` keeps the first of
    consecutive events with equal items.
    """
    # The comprehension runs backwards, so the first of several events with equal (time, item) overwrites the others.
    if remove_duplicates:
        sessions = [
            replace(s, events=sorted({(t, i): (t, r, i) for t, r, i in reversed(s.events)}.values(), key=_time_and_row))
            for s in sessions
        ]
    while True:
        n_events = sum(len(s.events) for s in sessions)
        support = Counter(item for s in sessions for _, _, item in s.events)
        sessions = [replace(s, events=[e for e in s.events if support[e[2]] >= min_support]) for s in sessions]
        if collapse:
            sessions = [replace(s, events=_without_repeats(s.events)) for s in sessions]
        sessions = [s for s in sessions if len(s.events) >= max(min_length, 1)]
        if sum(len(s.events) for s in sessions) == n_events:
            return sorted(sessions, key=Session.sort_key)


def _time_and_row(event: Event) -> tuple[float, int]:
    return event[:2]


def _without_repeats(events: list[Event]) -> list[Event]:
    return [event for j, event in enumerate(events) if j == 0 or events[j - 1][2] != event[2]]


def remove_unseen_items(sessions: list[Session], known: set[object], min_length: int, collapse: bool) -> list[Session]:
    """Filter the sessions of a held-out split: remove items that are not in `known`, then too short sessions."""
    sessions = [replace(s, events=[e for e in s.events if e[2] in known]) for s in sessions]
    return apply_filters(sessions, 1, max(2, min_length), remove_duplicates=False, collapse=collapse)


def items_of(sessions: list[Session]) -> list[object]:
    """Return the ids of all items in order of first appearance."""
    return list(dict.fromkeys(item for s in sessions for _, _, item in s.events))


def assert_store_is(store: SessionStore, sessions: list[Session], catalogue: list[object] | None = None) -> None:
    """Assert that the store holds these sessions in this order. `catalogue` lists the item ids by index."""
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


def assert_same_store(store: SessionStore, expected: SessionStore) -> None:
    """Assert that two stores are equal, including dtypes."""
    for name in ("items", "offsets", "start_times", "end_times", "support", "session_ids"):
        a, b = getattr(store, name), getattr(expected, name)
        assert a.dtype == b.dtype and a.tolist() == b.tolist(), name
    assert store.vocabulary == expected.vocabulary


@contextmanager
def tiny_batches(batch_rows: int = 3, partitions: int = 4, block_events: int = 5) -> Iterator[None]:
    """Make the package process a tiny log like one larger than memory: in several batches, partitions and blocks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gru4rec_fast.data.table_reader.BATCH_ROWS", batch_rows)
        patch.setattr("gru4rec_fast.data.sessions.ingest.PARTITIONS", partitions)
        patch.setattr("gru4rec_fast.data.sessions.assembly.BLOCK_EVENTS", block_events)
        yield
