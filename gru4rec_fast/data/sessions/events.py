"""Events grouped by session: `Events` in memory, and `EventLog`, whose partitions are stored on disk if necessary."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gru4rec_fast.data.array_folder import save_array, write_ids
from gru4rec_fast.data.vocabulary import decode_ids

if TYPE_CHECKING:
    from gru4rec_fast.distributed import Ranks


@dataclass(frozen=True)
class Events:
    """Sessions of a log with their events, sorted by session and time.

    Attributes:
        session_ids: int64 or str [n_sessions].
        first_rows: int64 [n_sessions], first input row of each session.
        lengths: int64 [n_sessions], number of events.
        items: int32 [n_events], item codes (see `EventLog`).
        times: int64 or float64 [n_events].
    """

    session_ids: np.ndarray
    first_rows: np.ndarray
    lengths: np.ndarray
    items: np.ndarray
    times: np.ndarray

    @cached_property
    def offsets(self) -> np.ndarray:
        """int64 [n_sessions + 1]; the items of session `s` are `items[offsets[s]:offsets[s + 1]]`."""
        return np.concatenate([[0], np.cumsum(self.lengths)])

    @property
    def starts(self) -> np.ndarray:
        """Time of the first event of each session; no session may be empty."""
        return self.times[self.offsets[:-1]]

    @property
    def ends(self) -> np.ndarray:
        """Time of the last event of each session; no session may be empty."""
        return self.times[self.offsets[1:] - 1]

    def repeat_mask(self) -> np.ndarray:
        """Return a mask, bool [n_events], of the events whose previous event in the session has the same item."""
        mask = np.zeros(len(self.items), bool)
        mask[1:] = self.items[1:] == self.items[:-1]
        mask[self.offsets[:-1][self.lengths > 0]] = False
        return mask

    def select_events(self, mask: np.ndarray) -> Events:
        """Return the sessions with only the events for which `mask`, bool [n_events], is True.

        Sessions may become empty.
        """
        offsets = np.concatenate([[0], np.cumsum(mask)])[self.offsets]
        return replace(self, lengths=np.diff(offsets), items=self.items[mask], times=self.times[mask])

    def select_sessions(self, mask: np.ndarray) -> Events:
        """Return only the sessions for which `mask`, bool [n_sessions], is True."""
        event_mask = np.repeat(mask, self.lengths)
        session_ids, first_rows, lengths = self.session_ids[mask], self.first_rows[mask], self.lengths[mask]
        return Events(session_ids, first_rows, lengths, self.items[event_mask], self.times[event_mask])

    def sorted_by_start(self) -> Events:
        """Return the sessions sorted by the time of their first event, then by their first input row."""
        order = np.lexsort((self.first_rows, self.starts))
        lengths = self.lengths[order]
        new_offsets = np.cumsum(lengths) - lengths
        # Old position of each event: its new position, moved by the distance between the two offsets of its session.
        index = np.arange(len(self.items)) + np.repeat(self.offsets[:-1][order] - new_offsets, lengths)
        return Events(self.session_ids[order], self.first_rows[order], lengths, self.items[index], self.times[index])


class EventLog:
    """A log divided into partitions, each an `Events`. All events of a session are in the same partition.

    Items have preliminary numbers, the item codes, in the order in which they were read. `ItemRenumbering` assigns the
    final indices.

    Args:
        item_ids: id of each item code.
        folder: existing folder to store the partitions in; None keeps them in memory.
        id_parsing: how session and item ids were read, see `TableReader.id_parsing`.

    Attributes:
        dropped: number of removed events, sessions and items by reason.
        notes: what else the `meta` of a store of this log says, e.g. {"targets": "last"}; not copied by `derive`.
    """

    def __init__(self, item_ids: np.ndarray, folder: Path | None, id_parsing: dict[str, dict[str, Any]]) -> None:
        self.item_ids = item_ids
        self.folder = folder
        self.id_parsing = id_parsing
        self.dropped: Counter[str] = Counter()
        self.notes: dict[str, str] = {}
        self._partitions: list[Events | Path] = []
        self._n_written = 0

    def append(self, events: Events) -> None:
        """Add a partition."""
        self._partitions.append(self._store(events))

    def join(self, ranks: Ranks) -> None:
        """Add the partitions of the logs of all ranks, which are stored on disk, and what these logs dropped."""
        logs = ranks.gather((self._partitions, self.dropped))
        self._partitions = [partition for partitions, _ in logs for partition in partitions]
        self.dropped = Counter()
        for _, dropped in logs:
            self.dropped.update(dropped)

    def __iter__(self) -> Iterator[Events]:
        for stored in self._partitions:
            yield _load(stored) if isinstance(stored, Path) else stored

    def update(self, function: Callable[[Events], Events]) -> None:
        """Replace every partition by `function(partition)`."""
        for i, stored in enumerate(self._partitions):
            self._partitions[i] = self._store(function(_load(stored) if isinstance(stored, Path) else stored))
            if isinstance(stored, Path):
                shutil.rmtree(stored)

    def derive(self, function: Callable[[int, Events], Events], folder_name: str) -> EventLog:
        """Return a new log whose partition i is `function(i, partition i)`, stored in a subfolder."""
        folder = self.folder / folder_name if self.folder else None
        if folder:
            folder.mkdir()
        log = EventLog(self.item_ids, folder, self.id_parsing)
        for i, events in enumerate(self):
            log.append(function(i, events))
        return log

    def support(self) -> np.ndarray:
        """Return the number of occurrences of each item, int64 [n item codes]."""
        support = np.zeros(len(self.item_ids), np.int64)
        for events in self:
            support += np.bincount(events.items, minlength=len(support))
        return support

    def _store(self, events: Events) -> Events | Path:
        """Return `events` itself, or the new folder to which its arrays were written."""
        if self.folder is None:
            return events
        path = self.folder / str(self._n_written)
        path.mkdir()
        self._n_written += 1
        for name in ("first_rows", "lengths", "items", "times"):
            save_array(path / f"{name}.npy", getattr(events, name))
        write_ids(path, "session_ids", events.session_ids)
        return path


def _load(path: Path) -> Events:
    """Return the partition that `EventLog._store` wrote to a folder."""
    # The arrays are read, not memory-mapped: pages of an open memory map count as resident memory of the process.
    arrays = {file.stem: np.load(file) for file in path.iterdir()}
    ids = {name.removeprefix("session_ids."): arrays.pop(name) for name in list(arrays) if "." in name}
    return Events(session_ids=decode_ids(ids), **arrays)
