"""Grouped events in memory, and a log of them in parts that need not fit there all at once."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from gru4rec_fast.data.array_folder import save_array, write_ids
from gru4rec_fast.data.vocabulary import decode_ids


@dataclass(frozen=True)
class Events:
    """Some sessions of a log, each with its events in time order.

    Attributes:
        session_ids: int64 or str [n_sessions].
        first_rows: int64 [n_sessions], the row of the input in which the session first appeared.
        lengths: int64 [n_sessions].
        items: int32 [n_events], session after session.
        times: int64 or float64 [n_events].
    """

    session_ids: np.ndarray
    first_rows: np.ndarray
    lengths: np.ndarray
    items: np.ndarray
    times: np.ndarray

    @cached_property
    def offsets(self) -> np.ndarray:
        """int64 [n_sessions + 1], where each session begins and the last one ends."""
        return np.concatenate([[0], np.cumsum(self.lengths)])

    @property
    def starts(self) -> np.ndarray:
        """Time of each session's first event; no session may be empty."""
        return self.times[self.offsets[:-1]]

    @property
    def ends(self) -> np.ndarray:
        """Time of each session's last event; no session may be empty."""
        return self.times[self.offsets[1:] - 1]

    def repeats(self) -> np.ndarray:
        """bool [n_events]: the event has the same item as the one before it in its session."""
        same = np.zeros(len(self.items), bool)
        same[1:] = self.items[1:] == self.items[:-1]
        same[self.offsets[:-1][self.lengths > 0]] = False
        return same

    def keep(self, wanted: np.ndarray) -> Events:
        """Only the events of a mask [n_events]; a session may end up empty."""
        kept = np.concatenate([[0], np.cumsum(wanted)])[self.offsets]
        return replace(self, lengths=np.diff(kept), items=self.items[wanted], times=self.times[wanted])

    def select(self, wanted: np.ndarray) -> Events:
        """Only the sessions of a mask [n_sessions]."""
        events = np.repeat(wanted, self.lengths)
        per_session = (self.session_ids[wanted], self.first_rows[wanted], self.lengths[wanted])
        return Events(*per_session, self.items[events], self.times[events])

    def in_start_order(self) -> Events:
        """The sessions ordered by the time of their first event, then by first appearance in the input."""
        order = np.lexsort((self.first_rows, self.starts))
        lengths = self.lengths[order]
        ends = np.cumsum(lengths)
        index = np.arange(len(self.items)) + np.repeat(self.offsets[:-1][order] - (ends - lengths), lengths)
        return Events(self.session_ids[order], self.first_rows[order], lengths, self.items[index], self.times[index])


class EventLog:
    """A log as a sequence of `Events`, every session whole within one of them.

    Args:
        item_ids: id of each item code that occurs in `Events.items`.
        folder: an existing folder to keep the parts in; None keeps them in memory.
        id_facts: of "session" and "item", see `TableReader.facts`.

    Attributes:
        dropped: how much was removed from the log, by reason.
    """

    def __init__(self, item_ids: np.ndarray, folder: Path | None, id_facts: dict[str, dict[str, Any]]) -> None:
        self.item_ids = item_ids
        self.folder = folder
        self.id_facts = id_facts
        self.dropped: Counter[str] = Counter()
        self._parts: list[Events | Path] = []
        self._written = 0

    def append(self, events: Events) -> None:
        """Add one more part."""
        self._parts.append(self._put(events))

    def __iter__(self) -> Iterator[Events]:
        for part in self._parts:
            yield _load(part) if isinstance(part, Path) else part

    def update(self, change: Callable[[Events], Events]) -> None:
        """Replace every part by `change(part)`."""
        for i, part in enumerate(self._parts):
            self._parts[i] = self._put(change(_load(part) if isinstance(part, Path) else part))
            if isinstance(part, Path):
                shutil.rmtree(part)

    def derived(self, change: Callable[[int, Events], Events], name: str) -> EventLog:
        """Another log, of `change(i, part)` for every part i; `name` is its folder's."""
        folder = self.folder / name if self.folder else None
        if folder:
            folder.mkdir()
        log = EventLog(self.item_ids, folder, self.id_facts)
        for i, events in enumerate(self):
            log.append(change(i, events))
        return log

    def support(self) -> np.ndarray:
        """int64 [n item codes]: how often each item occurs."""
        total = np.zeros(len(self.item_ids), np.int64)
        for events in self:
            total += np.bincount(events.items, minlength=len(total))
        return total

    def _put(self, events: Events) -> Events | Path:
        if self.folder is None:
            return events
        path = self.folder / str(self._written)
        path.mkdir()
        self._written += 1
        for name in ("first_rows", "lengths", "items", "times"):
            save_array(path / f"{name}.npy", getattr(events, name))
        write_ids(path, "session_ids", events.session_ids)
        return path


def _load(path: Path) -> Events:
    # Not memory-mapped: a page of a map that stays open counts as memory held.
    arrays = {file.stem: np.load(file) for file in path.iterdir()}
    ids = {name.removeprefix("session_ids."): arrays.pop(name) for name in list(arrays) if "." in name}
    return Events(session_ids=decode_ids(ids), **arrays)
